"""Studies of the accuracy and the cost of mask heads."""
