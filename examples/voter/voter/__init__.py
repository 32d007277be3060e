"""The noisy voter model, a system for mpiflow."""
