"""Ray Tune over kernel size, loss weights and learning rate."""
