"""Shards: how data sets become rows, and rows become batches."""
