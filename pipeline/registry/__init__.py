"""Registered versions: register, compare, promote, roll back, evaluate, predict."""
