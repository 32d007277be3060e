"""How a chain of two species advances in time: its processes, and their mean-field models."""
