"""Start and stop the server on Ray."""

import json
import logging
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from pipeline.errors import RecipeError, RegistryError
from pipeline.ray_address import uses_cluster
from pipeline.recipe import from_json
from pipeline.registry.versions import RECIPE_FILE, find_version, is_model_uri, read_file
from pipeline.server.address import check_address
from pipeline.server.options import ServeOptions
from pipeline.tracking.stores import resolve_tracking_uri

TOKEN_VARIABLE = "BSM_SERVE_TOKEN"  # noqa: S105  the name of a variable
"""Environment variable with the token that clients must send."""

APPLICATION = "bsm"

_SHORTEST_TOKEN = 16
_LOOK_AT_RAY_S = 0.5

_log = logging.getLogger(__name__)


class Server(NamedTuple):
    """A running server."""

    address: str
    """http://HOST:PORT."""
    versions: dict[str, str]
    """models:/NAME/VERSION by the name that was asked for."""

    def stop(self) -> None:
        """Remove the application; requests that are being answered are finished first.

        A signal to the whole process group, as `timeout` and some schedulers send it, ends Ray too,
        and then nothing is left to be removed.
        """
        import ray  # noqa: PLC0415  slow to import
        from ray import serve  # noqa: PLC0415

        from pipeline.ray_connection import accepts_connections  # noqa: PLC0415

        address = ray.get_runtime_context().gcs_address
        deletion = threading.Thread(target=serve.delete, args=(APPLICATION,), daemon=True)
        deletion.start()
        while deletion.is_alive():
            if not accepts_connections(address):
                _log.warning("serve: Ray has stopped already, so open requests were cut off")
                return
            deletion.join(_LOOK_AT_RAY_S)


def start_server(
    models: Sequence[str], options: ServeOptions, *, tracking: str = "", token: str | None = None
) -> Server:
    """Serve models until `Server.stop`; return once they are loaded and answer.

    Args:
        models: models:/NAME@ALIAS or models:/NAME/VERSION, the default first.
        options: of the server.
        tracking: URI of the registry; "" means the embedded store.
        token: that clients must send; None is that of TOKEN_VARIABLE, "" needs none.

    Raises:
        RecipeError: the token is too short, or the models have several tasks.
        RegistryError: there is no such model, or it cannot be loaded.
        SetupError: the port is in use, which is said first, or Ray cannot start.
    """
    token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    _check_token(token, options)
    if not uses_cluster():
        check_address(options.host, options.port)
    registry = resolve_tracking_uri(tracking, storage_uri="runs")
    versions = _find_versions(models, registry)

    from pipeline import ray_connection  # noqa: PLC0415  slow to import

    ray_connection.connect(cpus=options.replicas * options.cpus)
    _run(list(models), registry, options, token)
    host = f"[{options.host}]" if ":" in options.host else options.host
    return Server(f"http://{host}:{options.port}", versions)


def wait_for_signal(
    server: Server, *, every_s: float, print_line: Callable[[str], None]
) -> dict[str, str]:
    """Wait for Ctrl-C or SIGTERM, and print when another version serves.

    Args:
        server: that runs.
        every_s: seconds between two looks.
        print_line: prints a line.

    Returns:
        The versions that served last, as `Server.versions`.
    """
    stopped = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopped.set())
    versions = server.versions
    while not stopped.wait(every_s):
        found = _read_versions(server.address) or versions
        for name, uri in found.items():
            if uri != versions.get(name):
                print_line(f"serving {name}, now {uri}")
        versions = found
    return versions


def _read_versions(address: str) -> dict[str, str]:
    """Return the versions that serve now; nothing while the server is too busy to answer."""
    url = f"{address}/ready"
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310
        versions: dict[str, str] = json.load(response)["models"]
        return versions
    return {}


def _run(models: list[str], registry: str, options: ServeOptions, token: str) -> None:
    from ray import serve  # noqa: PLC0415  slow to import
    from ray.serve.config import HTTPOptions  # noqa: PLC0415
    from ray.serve.schema import LoggingConfig  # noqa: PLC0415

    from pipeline.server.app import digest_token  # noqa: PLC0415
    from pipeline.server.replica import build_application  # noqa: PLC0415

    application = build_application(models, registry, options, digest_token(token) if token else "")
    http = HTTPOptions(host=options.host, port=options.port, request_timeout_s=options.timeout_s)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options=http, logging_config=quiet)
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError:
        reason = _find_reason()
        serve.delete(APPLICATION)
        raise RegistryError(f"the server cannot start: {reason}") from None


def _check_token(token: str, options: ServeOptions) -> None:
    if token and len(token) < _SHORTEST_TOKEN:
        raise RecipeError(
            f"{TOKEN_VARIABLE} has {len(token)} characters; a token needs at least "
            f"{_SHORTEST_TOKEN}. Make one: export {TOKEN_VARIABLE}=$(openssl rand -hex 32)"
        )
    if not token and not options.is_local:
        _log.warning(
            "serve: everyone who reaches %s can use this server; ask for a token: export %s=...",
            *(options.host, TOKEN_VARIABLE),
        )


def _find_versions(names: Sequence[str], registry: str) -> dict[str, str]:
    """Find the version of each name; all must have one task."""
    versions, tasks = {}, {}
    for name in names:
        if not is_model_uri(name):
            raise RegistryError(
                f"model {name!r} must be models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        version = find_version(name, registry=registry)
        versions[name] = version.uri
        tasks[version.uri] = from_json(read_file(version, RECIPE_FILE)).model.task
    if len(set(tasks.values())) > 1:
        found = " and ".join(f"{uri} is a model of task {task}" for uri, task in tasks.items())
        raise RecipeError(f"{found}; a server takes models of one task: start another one")
    return versions


def _find_reason() -> str:
    """Return the last error of a replica that did not start, from Serve's own traceback."""
    from ray import serve  # noqa: PLC0415

    application = serve.status().applications[APPLICATION]
    texts = [each.message for each in application.deployments.values()] + [application.message]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    found = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return re.sub(r"^pipeline\.errors\.\w+: ", "", (found or lines)[-1])[:600]
