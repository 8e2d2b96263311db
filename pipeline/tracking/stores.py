"""Where tracking data lives, and a client for it that gives up quickly.

The embedded store is one SQLite file and a folder of artifacts; anything else is an MLflow tracking
URI. Clients are always made for an explicit URI: MLflow's own default is a database in whatever
folder the process happens to be in, and its fluent functions keep global state.
"""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.errors import StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

# MLflow waits 120 s for an answer and tries 7 times, minutes in which a run could not even end.
# What cannot be delivered waits in a spool file instead. Bars would garble the logs of a job. A
# user's own values win.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri(uri: str, *, storage_uri: str) -> str:
    """Give the full tracking URI that holds in every process.

    Args:
        uri: a recipe's tracking.uri; "" is what MLFLOW_TRACKING_URI names, or else the embedded
            store.
        storage_uri: the folder under which the embedded store keeps mlflow.db and mlartifacts. An
            object store cannot hold an SQLite file: then it is the folder "runs" of this machine,
            and a warning says so.

    Raises:
        StorageError: the URI is of no kind that MLflow knows.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return f"sqlite:///{_embedded_folder(storage_uri) / 'mlflow.db'}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SCHEMES:
        raise StorageError(
            f"tracking.uri {masked(uri)}: must start with one of {', '.join(_SCHEMES)}; "
            'take --tracking.uri http://HOST:PORT for a server, or "" for the embedded store'
        )
    if scheme == "sqlite":
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def client(uri: str) -> "MlflowClient":
    """Make a client for a full tracking URI, with short timeouts."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if (path := sqlite_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Creating the database reports every one of its migrations.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A server that is away is reported once, by us; urllib3 would report each of its tries.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # Not at the top: it takes four seconds, and the variables above must be set before.
    from mlflow import MlflowClient  # noqa: PLC0415

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """Give the database file of a SQLite URI, None for every other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_away(error: BaseException | None) -> bool:
    """Tell whether nobody answered, from what MLflow made of it."""
    while error is not None:
        kind = type(error)
        # requests has a ConnectionError of its own; timeouts of connecting are among its kinds.
        if any(each.__name__ == "ConnectionError" for each in kind.__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_words(error: Exception) -> str:
    """Give the first line of what MLflow, requests or SQLAlchemy say, without passwords."""
    if is_away(error):
        return "no connection"
    return masked(str(error).strip().partition("\n")[0])[:300] or type(error).__name__


def masked(text: str) -> str:
    """Hide user names, passwords and tokens of every URI in a text."""
    text = re.sub(r"://[^\s/]*@", "://***@", text)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:key|secret|token|password)[^=&\s]*=)[^&\s]+", r"\1***", text
    )


def _embedded_folder(storage_uri: str) -> Path:
    if storage.is_local(storage_uri):
        return Path(storage.absolute(storage_uri))
    folder = Path("runs").absolute()
    _log.warning(
        "event=tracking_is_local folder=%s reason='an SQLite file cannot live in %s, and nothing "
        "outside this machine sees it; for a shared store set --tracking.uri http://HOST:PORT'",
        folder,
        storage_uri,
    )
    return folder
