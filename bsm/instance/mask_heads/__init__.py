"""Mask heads, one file each, with the same interface."""
