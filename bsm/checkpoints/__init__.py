"""Weight files: read them safely, and map the names of other codes to ours."""
