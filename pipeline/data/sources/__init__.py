"""One reader for each data set layout."""
