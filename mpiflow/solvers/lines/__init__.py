"""How systems on a line advance in time."""
