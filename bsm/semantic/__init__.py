"""Semantic segmentation: DeepLabV3+ plain, with PointRend, and with the boundary squeeze."""
