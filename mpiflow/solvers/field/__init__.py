"""How coarse fields advance in time."""
