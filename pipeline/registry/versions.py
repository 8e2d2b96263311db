"""Registered versions as they are found by name, and the files that each carries.

    version = find("models:/NAME@champion", registry=uri)   # or NAME, or models:/NAME/VERSION
    recipe = read_file(version, "artifacts/recipe.json")

Nothing here depends on MLflow's process-wide settings: the registry is always said.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RegistryError, StorageError
from pipeline.tracking.stores import client, in_words, is_away, masked, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
DIGEST_TAG = "weights_sha256"
EVALUATED_ON_TAG = "evaluated_on"
METRIC_TAG = "metric."

WEIGHTS_FILE = "artifacts/model.safetensors"
RECIPE_FILE = "artifacts/recipe.json"
CATEGORIES_FILE = "artifacts/categories.json"
ORIGIN_FILE = "origin.json"
TRAINED_ON_FILE = "trained_on.json"
CARD_FILE = "model_card.md"
EVALUATIONS_FOLDER = "evaluations"

_PREFIX = "models:/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version, as the registry told it."""

    # May hold a password, which no log line that shows a version should.
    registry: str = field(repr=False)
    """Full tracking URI of the registry."""
    name: str
    version: str
    source: str
    """Where its files are."""
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
        """What was measured when it was registered, as its tags hold it."""
        return {
            name.removeprefix(METRIC_TAG): float(value)
            for name, value in self.tags.items()
            if name.startswith(METRIC_TAG)
        }


def is_model_uri(text: str) -> bool:
    """Tell whether a text names a registered model rather than a file."""
    return text.startswith(_PREFIX)


def find(model: str, *, registry: str, version: str = "") -> Version:
    """Look a version up.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or NAME alone.
        registry: full tracking URI.
        version: of NAME alone; "" is its champion.

    Raises:
        RegistryError: there is none; the answer says which there are.
        StorageError: there is no such registry.
    """
    check_database(registry)
    name, number, alias = _parsed(model, version)
    try:
        with _answering(registry):
            store = client(registry)
            if alias:
                number = str(store.get_model_version_by_alias(name, alias).version)
            # Asked for by alias, a version does not tell its other aliases.
            return _version(registry, store.get_model_version(name, number))
    except RegistryError:
        raise
    except Exception as error:  # MLflow, requests and SQLAlchemy each raise their own
        wanted = f"{name}@{alias}" if alias else f"{name}/{number}"
        raise RegistryError(
            f"{_PREFIX}{wanted} is not in {masked(registry)} ({in_words(error)}); "
            f"{_known(registry)}"
        ) from error


def find_all(registry: str, *, name: str = "") -> list[Version]:
    """List the versions of a model, or of all models, by name, the newest first.

    Raises:
        RegistryError: the registry does not answer.
        StorageError: there is no such registry.
    """
    check_database(registry)
    with registry_errors("the models cannot be listed"), _answering(registry):
        store = client(registry)
        query = f"name='{name}'" if name else None
        found = [_version(registry, each) for each in store.search_model_versions(query)]
        aliases = {each.name: dict(each.aliases) for each in store.search_registered_models(query)}
    return sorted(
        (_with_aliases(each, aliases.get(each.name, {})) for each in found),
        key=lambda each: (each.name, -int(each.version)),
    )


def read_file(version: Version, file: str) -> bytes:
    """Read one file of a version.

    Raises:
        RegistryError: it has no such file, or the artifact store does not answer.
    """
    with downloaded(version, file) as path:
        return path.read_bytes()


@contextmanager
def downloaded(version: Version, file: str) -> Iterator[Path]:
    """Have a file or folder of a version on this machine, for as long as it is needed.

    Raises:
        RegistryError: see `read_file`.
    """
    with tempfile.TemporaryDirectory(prefix="version-") as folder:
        yield _download(version, file, folder)


def list_files(version: Version, folder: str) -> list[str]:
    """List the files directly in a folder of a version ("" for its own); none where it is not.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    # Not at the top: it takes seconds.
    from mlflow.artifacts import list_artifacts  # noqa: PLC0415

    with registry_errors(f"{version.uri}: its files cannot be listed"):
        place = f"{version.source}/{folder}".rstrip("/")
        found = list_artifacts(artifact_uri=place, tracking_uri=version.registry)
    names = sorted(Path(each.path).name for each in found if not each.is_dir)
    return [f"{folder}/{name}" if folder else name for name in names]


def add_file(version: Version, file: str, data: bytes) -> None:
    """Put a file among those of a version, over what is there by that name.

    Raises:
        RegistryError: the artifact store does not take it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="version-") as folder,
        registry_errors(f"{version.uri}: {file} cannot be stored"),
    ):
        store = client(version.registry)
        path = Path(folder) / Path(file).name
        path.write_bytes(data)
        below = Path(_place_in_run(store, version), file).parent.as_posix()
        store.log_artifact(version.run_id, str(path), below)


def check_database(registry: str) -> None:
    """Refuse an SQLite file that is not there: MLflow would make an empty one.

    Raises:
        StorageError: names those that are near.
    """
    database = sqlite_path(registry)
    if database is None or database.exists():
        return
    near = sorted(str(path) for path in Path().glob("runs/**/mlflow.db"))
    hint = (
        f"there are: {', '.join(near)}; take one with --tracking-uri sqlite:///{near[0]}"
        if near
        else "train and register a model first, or name a server: --tracking-uri http://HOST:PORT"
    )
    raise StorageError(f"no registry at {database}: {hint}")


@contextmanager
def registry_errors(what: str, *, then: str = "") -> Iterator[None]:
    """Turn what MLflow, requests and SQLAlchemy raise into one sentence.

    Args:
        what: what did not succeed.
        then: what to do about it.
    """
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # each of them raises its own
        text = f"{what}: {type(error).__name__}: {in_words(error)}"
        raise RegistryError(f"{text}. {then}" if then else text) from None


def _parsed(model: str, version: str) -> tuple[str, str, str]:
    """Part a model into name, version and alias; one of the last two is ""."""
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


def _version(registry: str, found: "ModelVersion") -> Version:
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


def _place_in_run(store: "MlflowClient", version: Version) -> str:
    """Give the folder of a version among the artifacts of its run."""
    top = str(store.get_run(version.run_id).info.artifact_uri).rstrip("/") + "/"
    if not version.source.startswith(top):
        raise RegistryError(
            f"{version.uri} lies in {masked(version.source)}, outside of its run's artifacts: it "
            "was not registered by this package, which adds nothing to it"
        )
    return version.source.removeprefix(top)


def _download(version: Version, file: str, folder: str) -> Path:
    # Not at the top: it takes seconds.
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415

    with registry_errors(f"{version.uri}: {file} cannot be read"):
        path = download_artifacts(
            artifact_uri=f"{version.source}/{file}",
            dst_path=folder,
            tracking_uri=version.registry,
        )
        if not Path(path).exists():
            raise FileNotFoundError("no such file")
    return Path(path)


@contextmanager
def _answering(registry: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        raise RegistryError(
            f"the registry {masked(registry)} does not answer; start it, or name another: "
            "--tracking-uri http://HOST:PORT or sqlite:///FILE"
        ) from None


def _known(registry: str) -> str:
    try:
        models = client(registry).search_registered_models()
    except Exception as error:
        return f"the registry does not answer ({type(error).__name__})"
    known = [f"{m.name} (aliases: {', '.join(m.aliases) or 'none'})" for m in models]
    return f"it holds: {'; '.join(known) or 'no model'}"
