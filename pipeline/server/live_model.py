"""A registered model that follows its alias: the next version is loaded beside the current one.

Predictions read `current` once, so each of them is made by one version from start to end, and none
waits for a swap.
"""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.errors import PipelineError, RegistryError
from pipeline.recipe import ModelTask
from pipeline.registry.predict import load_version
from pipeline.registry.versions import find_version
from pipeline.serving.memory import describe_memory, list_memory_errors
from pipeline.serving.predictor import Predictor

_log = logging.getLogger(__name__)

_WARM_UP_SIDE_PX = 64
_LONGEST_WAIT_S = 300.0


class LoadedVersion(NamedTuple):
    """A version in memory."""

    uri: str
    """models:/NAME/VERSION."""
    version: str
    predictor: Predictor


class LiveModel:
    """A registered model by name, which may be an alias that moves.

    Args:
        name: models:/NAME@ALIAS or models:/NAME/VERSION.
        registry: full tracking URI.
        on_swap: called after a swap, and with the reason if one failed.

    Raises:
        RegistryError: there is no such version, or it cannot be loaded.
    """

    def __init__(self, name: str, *, registry: str, on_swap: Callable[[str], None]) -> None:
        self.name = name
        self.problem = ""
        """Why the alias could not be followed at the last look."""
        self._registry = registry
        self._on_swap = on_swap
        self._stop = threading.Event()
        self.current = self._load()

    @property
    def task(self) -> ModelTask:
        """Task of all its versions."""
        return self.current.predictor.task

    @property
    def is_alias(self) -> bool:
        """Whether the name can point to another version later."""
        return "@" in self.name

    def check_alias(self) -> bool:
        """Look up the alias, and swap in the version to which it points now.

        Returns:
            Whether there is another version now. If it cannot be loaded, the current one stays,
            and `problem` says why.
        """
        try:
            version = find_version(self.name, registry=self._registry)
            if version.version == self.current.version:
                self.problem = ""
                return False
            loaded = self._load()
            self._check_task(loaded)
        except PipelineError as error:
            self._keep(str(error))
            return False
        except list_memory_errors() as error:
            self._keep(f"the next version does not fit beside this one: {describe_memory(error)}")
            return False
        before, self.current = self.current, loaded
        self.problem = ""
        _log.info("%s: %s replaces %s", self.name, loaded.uri, before.uri)
        self._on_swap("")
        return True

    def follow(self, *, every_s: float) -> None:
        """Look at the alias again and again, in a thread of its own, until `stop`.

        After a failure the waits become longer: a version that cannot be loaded would be
        downloaded each time.
        """
        if self.is_alias:
            threading.Thread(target=self._follow, args=(every_s,), daemon=True).start()

    def stop(self) -> None:
        """Stop following the alias."""
        self._stop.set()

    def _follow(self, every_s: float) -> None:
        wait_s = every_s
        while not self._stop.wait(wait_s):
            try:
                self.check_alias()
            except Exception as error:  # the thread must live as long as the server
                _log.exception("%s: the alias cannot be followed", self.name)
                self._keep(f"{type(error).__name__}: {error}")
            wait_s = min(2 * wait_s, max(_LONGEST_WAIT_S, every_s)) if self.problem else every_s

    def _keep(self, reason: str) -> None:
        if reason != self.problem:
            _log.warning("%s: %s stays: %s", self.name, self.current.uri, reason)
        self.problem = reason
        self._on_swap(reason)

    def _load(self) -> LoadedVersion:
        version = find_version(self.name, registry=self._registry)
        predictor = load_version(version)
        _warm_up(predictor)
        return LoadedVersion(version.uri, version.version, predictor)

    def _check_task(self, loaded: LoadedVersion) -> None:
        task, served = loaded.predictor.task, self.task
        if task != served:
            raise RegistryError(
                f"{loaded.uri} is a model of task {task}, and this server has started with one of "
                f"task {served}; start it again, or move the alias back"
            )


def _warm_up(predictor: Predictor) -> None:
    """Predict once: the first forward pass of a process or a model is slow."""
    photo = np.zeros((_WARM_UP_SIDE_PX, _WARM_UP_SIDE_PX, 3), dtype=np.uint8)
    if predictor.task == "refine":
        predictor.refine_masks(photo, [np.eye(_WARM_UP_SIDE_PX, dtype=np.uint8)])
    else:
        predictor.predict_photos([photo])
