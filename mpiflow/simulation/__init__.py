"""A system made to run: its options, state, content and sizes, and the catalogue of systems."""
