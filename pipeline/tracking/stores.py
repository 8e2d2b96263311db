"""Resolve tracking URIs and create MLflow clients with short timeouts.

The embedded store is one SQLite file and a folder of artifacts; anything else is an MLflow tracking
URI. Clients always get an explicit URI: MLflow defaults to a database in the current folder, and
its fluent functions keep global state.
"""

import logging
import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline import storage
from pipeline.errors import StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")

_ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside the database."""

# By default MLflow waits 120 s for a response and retries 7 times, which delays even the end of a
# run by minutes; a spool file holds undelivered metrics instead. Progress bars garble job logs.
# Values that the user has set win.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def resolve_tracking_uri(uri: str, *, storage_uri: str) -> str:
    """Resolve a tracking URI to the full one, which is valid in every process.

    Args:
        uri: a recipe's tracking.uri; "" means MLFLOW_TRACKING_URI, or else the embedded store.
        storage_uri: the folder in which the embedded store keeps mlflow.db and mlartifacts. An
            object store cannot hold an SQLite file: the local folder "runs" is used instead, with
            a warning.

    Raises:
        StorageError: MLflow does not know the scheme of the URI, or would read the path of a
            database as another one.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return _to_sqlite_uri(_embedded_folder(storage_uri) / "mlflow.db")
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SCHEMES:
        raise StorageError(
            f"tracking.uri {redact(uri)}: must start with one of {', '.join(_SCHEMES)}; "
            'use --tracking.uri http://HOST:PORT for a server, or "" for the embedded store'
        )
    if scheme == "sqlite":
        return _to_sqlite_uri(Path(uri.removeprefix("sqlite:///")).absolute())
    return uri


def _to_sqlite_uri(database: Path) -> str:
    # SQLAlchemy decodes "%2F" to a slash, and takes what follows a "?" as options.
    path = str(database)
    if "?" in path or unquote(path) != path:
        raise StorageError(
            f"{database}: MLflow cannot open a database whose path has a ? or a percent-encoded "
            "character, such as %2F. Choose another folder (--storage FOLDER), or put the "
            "database alone elsewhere: --tracking.uri sqlite:////OTHER/FOLDER/mlflow.db for "
            "training, --tracking-uri for python jobs/models.py and python jobs/predict.py"
        )
    return f"sqlite:///{path}"


def embedded_artifacts(tracking_uri: str, experiment: str) -> str | None:
    """Return the artifact location of an experiment in the embedded store, None in any other.

    A server has its own artifact root; with SQLite, MLflow would use the current folder.
    """
    database = sqlite_path(tracking_uri)
    return (database.parent / _ARTIFACTS / experiment).as_uri() if database else None


def create_client(uri: str) -> "MlflowClient":
    """Create a client for a full tracking URI, with short timeouts.

    Raises:
        StorageError: the file of an embedded store cannot be opened, or is not a database.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if (path := sqlite_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_database(path)
    # Creating the database logs every migration.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # We report an unreachable server once; urllib3 would report every retry.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # Not at the top: it takes four seconds, and the variables above must be set first.
    from mlflow import MlflowClient  # noqa: PLC0415

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_database(path: Path) -> None:
    """Open a database once, as MLflow tries one that is broken for 100 s."""
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        if "locked" not in str(error):  # another process writes to it
            raise StorageError(
                f"MLflow's database {path} cannot be opened: {error}; check the permissions of its "
                "folder, restore the file from a copy, or use another (--tracking.uri for "
                "training, --tracking-uri for python jobs/models.py and python jobs/predict.py)"
            ) from error


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an SQLite URI, None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def local_path(uri: str) -> Path | None:
    """Return the folder of an artifact URI, None if it is not on this machine's disks."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)


def describe_moved_store(artifact_uri: str, *, tracking_uri: str) -> str:
    """Say how to make a moved embedded store complete; "" if it was not moved.

    MLflow records absolute paths: in a store that was moved, it reads from the old place, where
    nothing is, and writes to it.

    Args:
        artifact_uri: of an experiment, a run or a version.
        tracking_uri: full URI.
    """
    database, recorded = sqlite_path(tracking_uri), local_path(artifact_uri)
    if database is None or recorded is None or recorded.exists():
        return ""
    for root in recorded.parents:
        if root.name == _ARTIFACTS:
            here = database.parent / _ARTIFACTS / recorded.relative_to(root)
            if not here.exists():
                return ""
            old, new = root.parent, database.parent
            above, link, target = (shlex.quote(str(each)) for each in (old.parent, old, new))
            return (
                f"the store was moved from {old} to {new}, and MLflow keeps absolute paths. Move "
                f"it back, or link it: mkdir -p {above} && ln -s {target} {link}"
            )
    return ""


def is_connection_error(error: BaseException | None) -> bool:
    """Tell whether an MLflow exception was caused by a failed connection."""
    while error is not None:
        kind = type(error)
        # requests has its own ConnectionError, of which its connect timeout is a subclass.
        if any(each.__name__ == "ConnectionError" for each in kind.__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def format_error(error: Exception) -> str:
    """Return the first line of an MLflow, requests or SQLAlchemy error, without passwords."""
    if is_connection_error(error):
        return "no connection"
    return redact(str(error).strip().partition("\n")[0])[:300] or type(error).__name__


def redact(text: str) -> str:
    """Replace user names, passwords and tokens of every URI in a text with ***."""
    text = re.sub(r"://[^\s/]*@", "://***@", text)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:key|secret|token|password)[^=&\s]*=)[^&\s]+", r"\1***", text
    )


def _embedded_folder(storage_uri: str) -> Path:
    if storage.is_local(storage_uri):
        return Path(storage.absolute(storage_uri))
    folder = Path("runs").absolute()
    _log.warning(
        "event=tracking_is_local folder=%s reason='an SQLite file cannot be stored in %s; it is "
        "visible on this machine only; for a shared store set --tracking.uri http://HOST:PORT'",
        folder,
        storage_uri,
    )
    return folder
