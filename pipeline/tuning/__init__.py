"""Search kernel size, loss weights and learning rate with Ray Tune."""
