"""Runs a recipe on Ray, keeps the ledger, writes the report; the command line."""
