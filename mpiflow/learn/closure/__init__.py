"""Macroscopic stochastic equations of one or a few observables."""
