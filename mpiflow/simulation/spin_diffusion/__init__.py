"""Chains of two species made to run, as a stochastic process and by its mean-field models."""
