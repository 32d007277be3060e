"""Generators of fields, learned from increments."""
