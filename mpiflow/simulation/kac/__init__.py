"""Kac spins made to run."""
