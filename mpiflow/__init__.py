"""mpiflow: multi-process stochastic lattice dynamics, and learning from it."""

__version__ = "0.1.0"
