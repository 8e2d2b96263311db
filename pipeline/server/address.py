"""Check that a server can listen on its address, before anything slow is imported."""

import socket

from pipeline.errors import SetupError


def check_address(host: str, port: int) -> None:
    """Check that this machine can listen there now.

    Raises:
        SetupError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "choose another port: --port PORT",
        ) from None
