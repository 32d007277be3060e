"""Stochastic fields made to run."""
