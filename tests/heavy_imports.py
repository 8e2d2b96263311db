"""Which of the modules that take half a second or more a process has imported."""

HEAVY = frozenset(
    {"kornia", "matplotlib", "mlflow", "pandas", "ray", "ray.data", "ray.train", "scipy", "timm"}
    | {"torch", "torchvision"}
)


def list_heavy(stderr: str) -> set[str]:
    """Return the heavy modules in the standard error of `python -X importtime`."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    assert lines
    return HEAVY & {line.rpartition("|")[2].strip() for line in lines}
