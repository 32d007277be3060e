"""What is on disk: runs and their schema, seals, checkpoints, structures."""
