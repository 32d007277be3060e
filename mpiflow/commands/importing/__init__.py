"""Trajectories of other programs as files of runs; see docs/import.md."""
