"""Training: the step, the loop, and its launch on Ray Train."""
