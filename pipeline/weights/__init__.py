"""Weights that others publish: their names, where they are, and what model they belong to."""
