"""Tell where Ray will run, without importing it."""

import os


def uses_cluster() -> bool:
    """Tell whether Ray will be a running cluster: of a submitted job, or in RAY_ADDRESS."""
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return is_job or os.environ.get("RAY_ADDRESS", "") not in {"", "local"}
