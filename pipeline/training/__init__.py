"""Train a model: the step, the loop, and the launch on Ray Train."""
