"""Initial states."""
