"""Look at models: the features of the squeeze, and several models on the same photos."""
