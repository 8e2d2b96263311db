"""Weights that others trained: their files, and their names for the parameters of our models."""
