"""Semantic segmentation: DeepLabV3+, plain, with PointRend or with the boundary squeeze."""
