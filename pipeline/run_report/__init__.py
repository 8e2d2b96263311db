"""The report of a run or a sweep: one HTML file that opens from disk."""
