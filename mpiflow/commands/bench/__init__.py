"""``mpiflow bench``: how fast a part is."""
