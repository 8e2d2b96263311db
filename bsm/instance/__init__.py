"""Instance segmentation: a Mask R-CNN whose mask head can be the boundary squeeze."""
