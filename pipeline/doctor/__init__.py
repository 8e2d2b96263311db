"""Check whether a Ray cluster can train."""
