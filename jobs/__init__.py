"""The experiments: one recipe and one call each."""
