"""What systems on a square lattice share."""
