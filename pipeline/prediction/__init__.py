"""Predict for photos, folders and videos, with any loaded model."""
