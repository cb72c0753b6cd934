"""What can be done to samples: one file for each step. Imports shards."""
