"""Ising spins made to run."""
