"""Export registered models and shards to formats that other programs read."""
