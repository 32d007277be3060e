"""How Kac spins advance in time."""
