"""Prediction outside of training."""
