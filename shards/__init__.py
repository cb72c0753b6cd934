"""Ground floor: what a sample is, how it lies on disk, how it is read, decoded and counted. Imports nothing of ours."""
