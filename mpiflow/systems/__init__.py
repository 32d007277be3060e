"""Systems: the physics of one site, and nothing else."""
