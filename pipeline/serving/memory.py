"""Tell apart the errors that mean too little memory, also where torch is not installed."""

import sys


def list_memory_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of a photo that does not fit into memory."""
    torch = sys.modules.get("torch")
    return (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)


def describe_memory(error: BaseException) -> str:
    """Say that a photo does not fit into memory."""
    return f"not enough memory to predict it: {str(error)[:100] or type(error).__name__}"
