"""Refine the masks of files: results, annotations and label PNGs."""
