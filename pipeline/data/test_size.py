"""The size to which a photo is resized."""


def fit_edges(size_hw: tuple[int, int], short_edge_px: int, long_edge_px: int) -> tuple[int, int]:
    """Scale a size to the short edge, or less if the long edge would exceed its limit.

    The arithmetic and the rounding are those of detectron2's ResizeShortestEdge.
    """
    height, width = size_hw
    scale = short_edge_px / min(height, width)
    if height < width:
        new_height, new_width = float(short_edge_px), scale * width
    else:
        new_height, new_width = scale * height, float(short_edge_px)
    if max(new_height, new_width) > long_edge_px:
        scale = long_edge_px / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # A very narrow image keeps at least one pixel.
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))
