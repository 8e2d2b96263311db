"""Predict with registered models."""
