"""BoundarySqueeze in plain torch: the module, its targets, its losses, and its detectors."""
