"""Solvers: how time advances. They see arrays and rates, never ranks."""
