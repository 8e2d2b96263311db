"""BoundarySqueeze in plain torch: the module, its targets and losses, and the detectors built on them."""
