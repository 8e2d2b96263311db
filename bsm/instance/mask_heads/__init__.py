"""The mask heads: one file each, one interface."""
