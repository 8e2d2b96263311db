"""Look up registered versions by name, and read and write their files.

    version = find_version("models:/NAME@champion", registry=uri)  # or NAME, models:/NAME/VERSION
    recipe = read_file(version, "artifacts/recipe.json")

The registry is always explicit: nothing here reads MLflow's process-wide settings.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RegistryError, StorageError
from pipeline.serving import artifacts
from pipeline.tracking.stores import (
    create_client,
    describe_moved_store,
    format_error,
    is_connection_error,
    local_path,
    redact,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
DIGEST_TAG = "weights_sha256"
EVALUATED_ON_TAG = "evaluated_on"
METRIC_TAG = "metric."

ARTIFACTS_FOLDER = "artifacts"
WEIGHTS_FILE = f"{ARTIFACTS_FOLDER}/{artifacts.WEIGHTS_FILE}"
RECIPE_FILE = f"{ARTIFACTS_FOLDER}/{artifacts.RECIPE_FILE}"
CATEGORIES_FILE = f"{ARTIFACTS_FOLDER}/{artifacts.CATEGORIES_FILE}"
ORIGIN_FILE = "origin.json"
TRAINED_ON_FILE = "trained_on.json"
CARD_FILE = "model_card.md"
EVALUATIONS_FOLDER = "evaluations"

_PREFIX = "models:/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version, as read from the registry."""

    # May contain a password, which must not appear in logs.
    registry: str = field(repr=False)
    """Full tracking URI of the registry."""
    name: str
    version: str
    source: str
    """URI of its folder of files."""
    run_id: str
    created_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"{_PREFIX}{self.name}/{self.version}"

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics measured at registration, from the tags."""
        return {
            name.removeprefix(METRIC_TAG): float(value)
            for name, value in self.tags.items()
            if name.startswith(METRIC_TAG)
        }


def is_model_uri(text: str) -> bool:
    """Tell whether a text is a models:/ URI rather than a path."""
    return text.startswith(_PREFIX)


def find_version(model: str, *, registry: str, version: str = "") -> Version:
    """Look up a version.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or NAME alone.
        registry: full tracking URI.
        version: version number, with NAME alone; "" means its champion.

    Raises:
        RegistryError: there is no such version; the message lists the models that exist.
        StorageError: there is no such registry.
    """
    check_database_exists(registry)
    name, number, alias = _parse_model(model, version)
    try:
        with _require_connection(registry):
            store = create_client(registry)
            if alias:
                number = str(store.get_model_version_by_alias(name, alias).version)
            # A version that is looked up by alias lacks its other aliases.
            return _from_mlflow(registry, store.get_model_version(name, number))
    except (RegistryError, StorageError):
        raise
    except Exception as error:  # MLflow, requests and SQLAlchemy share no base class
        wanted = f"{name}@{alias}" if alias else f"{name}/{number}"
        raise RegistryError(
            f"{_PREFIX}{wanted} is not in {redact(registry)} ({format_error(error)}); "
            f"{_list_models(registry)}"
        ) from error


def list_versions(registry: str, *, name: str = "") -> list[Version]:
    """List the versions of a model, or of all models, sorted by name, newest first.

    Raises:
        RegistryError: the registry does not answer.
        StorageError: there is no such registry.
    """
    check_database_exists(registry)
    with wrap_registry_errors("the models cannot be listed"), _require_connection(registry):
        store = create_client(registry)
        query = f"name='{name}'" if name else None
        found = [_from_mlflow(registry, each) for each in store.search_model_versions(query)]
        aliases = {each.name: dict(each.aliases) for each in store.search_registered_models(query)}
    return sorted(
        (_with_aliases(each, aliases.get(each.name, {})) for each in found),
        key=lambda each: (each.name, -int(each.version)),
    )


def read_file(version: Version, file: str) -> bytes:
    """Read one file of a version.

    Raises:
        RegistryError: there is no such file, or the artifact store does not answer.
    """
    with download_file(version, file) as path:
        return path.read_bytes()


@contextmanager
def download_file(version: Version, file: str) -> Iterator[Path]:
    """Download a file or folder of a version to a temporary folder, deleted on exit.

    Raises:
        RegistryError: see `read_file`; or the weights are not those that were registered.
    """
    # Not at the top: it takes seconds.
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415

    _refuse_moved_store(version)
    with tempfile.TemporaryDirectory(prefix="version-") as folder:
        with wrap_registry_errors(f"{version.uri}: {file} cannot be read"):
            path = download_artifacts(
                artifact_uri=f"{version.source}/{file}",
                dst_path=folder,
                tracking_uri=version.registry,
            )
            if not Path(path).exists():
                raise FileNotFoundError("no such file")
        _check_digest(version, file, Path(path))
        yield Path(path)


def list_files(version: Version, folder: str) -> list[str]:
    """List the files directly in a folder of a version ("" is the top); [] without such a folder.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    # Not at the top: it takes seconds.
    from mlflow.artifacts import list_artifacts  # noqa: PLC0415

    _refuse_moved_store(version)
    with wrap_registry_errors(f"{version.uri}: its files cannot be listed"):
        uri = f"{version.source}/{folder}".rstrip("/")
        found = list_artifacts(artifact_uri=uri, tracking_uri=version.registry)
    names = sorted(Path(each.path).name for each in found if not each.is_dir)
    return [f"{folder}/{name}" if folder else name for name in names]


def add_file(version: Version, file: str, data: bytes) -> None:
    """Add a file to a version, or overwrite it.

    Raises:
        RegistryError: the artifact store does not accept it.
    """
    _refuse_moved_store(version)
    with (
        tempfile.TemporaryDirectory(prefix="version-") as folder,
        wrap_registry_errors(f"{version.uri}: {file} cannot be stored"),
    ):
        store = create_client(version.registry)
        path = Path(folder) / Path(file).name
        path.write_bytes(data)
        parent = Path(_path_in_run(store, version), file).parent.as_posix()
        store.log_artifact(version.run_id, str(path), parent)


def check_database_exists(registry: str) -> None:
    """Refuse a missing SQLite file, which MLflow would create empty.

    Raises:
        StorageError: the file is missing; the message names databases nearby.
    """
    database = sqlite_path(registry)
    if database is None or database.exists():
        return
    near = sorted(str(path) for path in Path().glob("runs/**/mlflow.db"))
    hint = (
        f"found nearby: {', '.join(near)}; use one with --tracking-uri sqlite:///{near[0]}"
        if near
        else "train and register a model first, or name a server: --tracking-uri http://HOST:PORT"
    )
    raise StorageError(f"no registry at {database}: {hint}")


@contextmanager
def wrap_registry_errors(what: str, *, then: str = "") -> Iterator[None]:
    """Convert exceptions of MLflow, requests and SQLAlchemy to a RegistryError of one sentence.

    Args:
        what: the operation that failed.
        then: what to do about it.
    """
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # they share no base class
        text = f"{what}: {type(error).__name__}: {format_error(error)}"
        raise RegistryError(f"{text}. {then}" if then else text) from None


def _parse_model(model: str, version: str) -> tuple[str, str, str]:
    """Split a model into name, version and alias; one of the last two is ""."""
    if version and (model.startswith(_PREFIX) or not version.isdigit()):
        raise RegistryError(
            f"version {version!r} must be a number beside a plain NAME, got {model!r}; type "
            f"{_PREFIX}NAME/{version} or NAME --version NUMBER"
        )
    name, at, alias = model.removeprefix(_PREFIX).partition("@")
    if at and alias and name:
        return name, "", alias
    if not model.startswith(_PREFIX) and name and not at and "/" not in name:
        return (name, version, "") if version else (name, "", CHAMPION)
    name, slash, number = name.partition("/")
    if not slash or at or not name or not number.isdigit():
        raise RegistryError(f"model {model!r} must be {_PREFIX}NAME@ALIAS or {_PREFIX}NAME/VERSION")
    return name, number, ""


def _from_mlflow(registry: str, found: "ModelVersion") -> Version:
    return Version(
        registry=registry,
        name=found.name,
        version=str(found.version),
        source=str(found.source).rstrip("/"),
        run_id=found.run_id or "",
        created_ms=found.creation_timestamp or 0,
        tags=dict(found.tags),
        aliases=tuple(found.aliases or ()),
    )


def _with_aliases(version: Version, aliases: dict[str, str]) -> Version:
    mine = (alias for alias, number in aliases.items() if str(number) == version.version)
    return replace(version, aliases=tuple(sorted(mine)))


def _check_digest(version: Version, file: str, path: Path) -> None:
    """Refuse downloaded weights whose bytes are not those that were registered."""
    weights = {WEIGHTS_FILE: path, ARTIFACTS_FOLDER: path / artifacts.WEIGHTS_FILE}.get(file)
    registered = version.tags.get(DIGEST_TAG, "")
    if weights is None or not weights.exists() or not registered:
        return
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != registered:
        raise RegistryError(
            f"{version.uri}: its weights were changed in the artifact store after registration "
            f"(SHA-256 {digest}, registered {registered}). Take another version, or register the "
            "run again"
        )


def _refuse_moved_store(version: Version) -> None:
    if moved := describe_moved_store(version.source, tracking_uri=version.registry):
        raise RegistryError(
            f"{version.uri}: there is no folder {local_path(version.source)}: {moved}"
        )


def _path_in_run(store: "MlflowClient", version: Version) -> str:
    """Return the folder of a version, relative to the artifacts of its run."""
    top = str(store.get_run(version.run_id).info.artifact_uri).rstrip("/") + "/"
    if not version.source.startswith(top):
        raise RegistryError(
            f"{version.uri} is stored in {redact(version.source)}, outside its run's artifacts "
            f"({redact(top)}), so nothing can be added to it. Register its run again: "
            f"python jobs/models.py register STORAGE/RUN --name {version.name}"
        )
    return version.source.removeprefix(top)


@contextmanager
def _require_connection(registry: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise RegistryError(
            f"the registry {redact(registry)} does not answer; start it, or use another: "
            "--tracking-uri http://HOST:PORT or sqlite:///FILE"
        ) from None


def _list_models(registry: str) -> str:
    try:
        store = create_client(registry)
        models = store.search_registered_models()
        newest = {
            m.name: max((int(v.version) for v in m.latest_versions), default=0) for m in models
        }
    except Exception as error:
        return f"the registry does not answer ({type(error).__name__})"
    listed = [
        f"{m.name} (newest version: models:/{m.name}/{newest[m.name]}, "
        f"aliases: {', '.join(m.aliases) or 'none'})"
        for m in models
    ]
    return f"it holds: {'; '.join(listed) or 'no model'}"
