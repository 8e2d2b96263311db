"""MLflow: runs, the registry, and the model as it is packaged."""
