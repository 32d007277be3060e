"""How Ising spins advance in time."""
