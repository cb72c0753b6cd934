"""Streams shards into DeepSpeed. Imports shards; never curation or pipeline."""
