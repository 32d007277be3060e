"""The alloy made to run."""
