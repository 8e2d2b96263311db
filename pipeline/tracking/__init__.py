"""MLflow runs: metrics, artifacts and the tracking store."""
