"""Sharpen given masks: a refiner that takes a photo and any masks of it."""
