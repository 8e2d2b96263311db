"""Studies of our own: what a mask head gives, and what it costs."""
