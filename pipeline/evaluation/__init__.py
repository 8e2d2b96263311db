"""Evaluation: inference over a split, and the metrics of its detections."""
