"""Recipes, stages and profiles as YAML: package data, no code."""
