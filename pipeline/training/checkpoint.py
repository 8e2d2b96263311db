"""Checkpoints: everything that a resume needs, in `<run>/checkpoints/step-00001000/`.

`checkpoint.pt` holds only tensors and plain values and is loaded with weights_only=True, so loading
it executes no code. `checkpoint.json` is written after it and records its content, its size and its
SHA-256: a folder without `checkpoint.json` was cut off by a crash. Every reader checks the bytes; a
damaged checkpoint is passed over, and the log says why. Older checkpoints have no SHA-256, and only
their size is checked. The layout does not depend on the number of workers, so a run that started
with two workers can resume with none.
"""

import io
import json
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.checksums import hash_bytes
from pipeline.data.text_files import parse_json
from pipeline.errors import RecipeError, StorageError, TrainingError
from pipeline.recipe import Recipe, differences, fingerprint, from_dict, to_json
from pipeline.training.optim import FiniteOptimizer

_log = logging.getLogger(__name__)

FORMAT = 1

_SELF_DIGEST = "manifest_sha256"
"""Key of checkpoint.json's SHA-256 of its other content."""

_FREE = (
    "scale.",
    "storage",
    "weights_mirror",
    "tracking.",
    "evaluation.",
    "checkpoint.",
    # The data's fingerprint is compared instead of its path.
    "data.root",
    "data.train_split",
    "data.val_split",
    "data.test_short_edge_px",
    "data.decode_in",
    "data.prefetch_batches",
    # Only the order of sums, as another GPU does.
    "optim.compile",
)
"""Fields that do not change the final weights; a resume may change them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The recipe, categories and data of a run; a resume must have the same."""

    recipe: Recipe
    categories: tuple[tuple[int, int, str], ...]
    """(category_id, category_index, name) of each category."""
    data_fingerprint: str


class HasState(Protocol):
    """A module, an optimizer, or a copy of its state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and plain values of the state."""


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of torch's random generators."""

    torch: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls) -> "RandomState":
        """Return the current state."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(torch.get_rng_state(), cuda)


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A complete checkpoint in storage."""

    uri: str
    step: int
    """Steps done, and the next step to train."""


def checkpoints_uri(run_uri: str) -> str:
    """Return the folder of a run's checkpoints."""
    return storage.join(run_uri, "checkpoints")


def find_all(run_uri: str) -> list[CheckpointRef]:
    """List the checkpoints of a run that have both files at full size, oldest first."""
    return [ref for ref in _list_folders(run_uri) if not _find_problem(ref)]


def find_latest(
    run_uri: str, *, print_line: Callable[[str], None] = lambda line: _log.warning("%s", line)
) -> CheckpointRef | None:
    """Return the newest whole checkpoint of a run, or None if it has written none.

    Args:
        run_uri: the run's folder.
        print_line: is called for each newer checkpoint that is passed over, with the reason.

    Raises:
        StorageError: the run has checkpoints, and all of them are damaged.
    """
    lines: list[str] = []
    damaged = 0
    for ref in reversed(_list_folders(run_uri)):
        problem = _find_problem(ref) or _find_changed_bytes(ref)
        if not problem:
            if lines:
                lines.append(f"the newest whole checkpoint is {ref.uri}")
            for line in lines:
                print_line(line)
            return ref
        lines.append(f"passed over {ref.uri}: {problem}")
        damaged += storage.exists(storage.join(ref.uri, "checkpoint.json"))
    if damaged:
        name = run_uri.rpartition("/")[2]
        raise StorageError(
            f"{run_uri} has no whole checkpoint to resume from:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nRestore one of these folders from a copy, or start a new run with: "
            f"--name {name}-2. To train this one again from step 0, delete "
            f"{checkpoints_uri(run_uri)} and run the same command"
        )
    for line in lines:
        print_line(f"{line}; the run has no other, so it starts at step 0")
    return None


def get_ref(run_uri: str, *, step: int) -> CheckpointRef:
    """Return the checkpoint after `step` steps, whether or not it is there."""
    return CheckpointRef(storage.join(checkpoints_uri(run_uri), f"step-{step:08d}"), step)


def save(
    run_uri: str,
    *,
    model: HasState,
    optimizer: HasState,
    average: HasState | None = None,
    step: int,
    epoch: int,
    identity: Identity,
    random_state: RandomState | None = None,
) -> CheckpointRef:
    """Write the checkpoint after `step` steps atomically.

    Args:
        run_uri: the run's folder.
        model: of the run, or a copy of its state.
        optimizer: of the run, or a copy of its state.
        average: of the weights, or a copy of its state; None if the recipe does not average.
        step: steps done.
        epoch: epochs completed.
        identity: of the run.
        random_state: by default the current one.
    """
    info = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "recipe": json.loads(to_json(identity.recipe)),
        "recipe_fingerprint": fingerprint(identity.recipe),
        "categories": [list(category) for category in identity.categories],
        "data_fingerprint": identity.data_fingerprint,
    }
    random_state = random_state or RandomState.capture()
    buffer = io.BytesIO()
    torch.save(
        {
            **info,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            **({"average": average.state_dict()} if average is not None else {}),
            "rng": {"torch": random_state.torch, "cuda": random_state.cuda},
        },
        buffer,
    )
    data = buffer.getvalue()
    ref = get_ref(run_uri, step=step)
    # Hashing takes as long as half of the write, and runs beside it: both release the GIL.
    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(hash_bytes, data)
        storage.write_bytes_atomic(storage.join(ref.uri, "checkpoint.pt"), data)
    manifest = {**info, "bytes": len(data), "sha256": digest.result()}
    text = json.dumps({**manifest, _SELF_DIGEST: _digest_json(manifest)}, indent=1)
    storage.write_bytes_atomic(storage.join(ref.uri, "checkpoint.json"), text.encode())
    return ref


def load_info(ref: CheckpointRef) -> dict[str, Any]:
    """Load a checkpoint's `checkpoint.json`.

    Raises:
        TrainingError: it was changed after it was written.
    """
    try:
        info = parse_json(storage.read_bytes(storage.join(ref.uri, "checkpoint.json")))
    except ValueError:
        info = None
    digest = info.pop(_SELF_DIGEST, None) if isinstance(info, dict) else None
    if (
        not isinstance(info, dict)
        or not isinstance(info.get("bytes"), int)
        or digest not in (None, _digest_json(info))
    ):
        raise TrainingError(f"{ref.uri}: checkpoint.json was changed after it was written")
    return info


def load(ref: CheckpointRef) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        TrainingError: it is damaged or has another format.
    """
    then = "Delete this folder to resume from the previous checkpoint."
    problem = _find_problem(ref)
    data = b"" if problem else storage.read_bytes(storage.join(ref.uri, "checkpoint.pt"))
    problem = problem or _find_changed_bytes(ref, data)
    if problem:
        raise TrainingError(f"{ref.uri}: {problem}. {then}")
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"{ref.uri}: checkpoint.pt cannot be read ({type(error).__name__}). {then}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise TrainingError(
            f"{ref.uri}: checkpoint format {found!r:.40}, this version reads {FORMAT}. "
            "Train under another --name, or resume with the version that wrote it."
        )
    return content


def check_start_weights(uri: str) -> None:
    """Refuse a damaged `checkpoint.pt` as start weights; other files have no checksum here.

    Raises:
        StorageError: the checkpoint is damaged.
    """
    folder, _, name = uri.rpartition("/")
    ref = CheckpointRef(folder, 0)
    if name != "checkpoint.pt" or not storage.exists(storage.join(folder, "checkpoint.json")):
        return
    problem = _find_problem(ref) or _find_changed_bytes(ref)
    if problem:
        raise StorageError(
            f"weights {uri}: {problem}. Use another checkpoint of the run, or its model.safetensors"
        )


def restore(content: dict[str, Any], *, model: nn.Module, optimizer: FiniteOptimizer) -> None:
    """Restore the weights, the optimizer and the random state from a checkpoint."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"]["torch"])
    if torch.cuda.is_available() and content["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["rng"]["cuda"])


def require_same(ref: CheckpointRef, *, identity: Identity) -> None:
    """Refuse to resume a run with another recipe, other data or other categories.

    Raises:
        RecipeError: they differ from those of the checkpoint.
    """
    info = load_info(ref)
    changed = [
        line
        for line in differences(from_dict(info["recipe"]), identity.recipe)
        if not line.startswith((*_FREE, "name:"))
    ]
    if info["data_fingerprint"] != identity.data_fingerprint:
        changed.append(f"data: {info['data_fingerprint']} -> {identity.data_fingerprint}")
    if [tuple(category) for category in info["categories"]] != list(identity.categories):
        before, after = _names(info["categories"]), _names(identity.categories)
        changed.append(f"categories: {before} -> {after}")
    if changed:
        name = identity.recipe.name
        lines = "\n".join(f"  {line}" for line in changed)
        raise RecipeError(
            f"run {name} in {identity.recipe.storage} is at step {ref.step} with another recipe:"
            f"\n{lines}\n"
            "A run can only resume with the same recipe. Use the values on the left to resume it: "
            f"python jobs/train.py {storage.join(identity.recipe.storage, name)}/recipe.json\n"
            f"Or start a new run with: --name {name}-2"
        )


def prune(run_uri: str, *, step: int, keep: int, protected: Collection[int] = ()) -> None:
    """Delete all but the newest checkpoints, and older ones that a crash left incomplete.

    Args:
        run_uri: the run's folder.
        step: the step of the newest checkpoint. Later ones are damaged, as the run resumed from
            an earlier one; they do not count, and are overwritten when the run gets there.
        keep: number of checkpoints to keep.
        protected: steps of checkpoints to keep besides.
    """
    whole = [ref for ref in find_all(run_uri) if ref.step <= step]
    kept = {ref.uri for ref in whole[-keep:]}
    newest = max(kept, default="")
    kept |= {ref.uri for ref in whole if ref.step in protected}
    for ref in _list_folders(run_uri):
        if ref.uri < newest and ref.uri not in kept:
            # checkpoint.json first: a crash in between must not leave half a checkpoint that
            # looks complete.
            storage.remove(storage.join(ref.uri, "checkpoint.json"))
            storage.remove(ref.uri)


def _list_folders(run_uri: str) -> list[CheckpointRef]:
    """List the folders of a run's checkpoints, oldest first, whole or not."""
    files = storage.list_files(checkpoints_uri(run_uri), recursive=True)
    folders = {file.rpartition("/")[0] for file in files}
    steps = {uri: uri.rpartition("/step-")[2] for uri in folders}
    refs = [CheckpointRef(uri, int(step)) for uri, step in steps.items() if step.isdigit()]
    return sorted(refs, key=lambda ref: ref.step)


def _find_problem(ref: CheckpointRef) -> str:
    """Say what is wrong with the files of a checkpoint, without reading its tensors; "" if well."""
    if not storage.exists(storage.join(ref.uri, "checkpoint.json")):
        return "checkpoint.json is missing: it was not written to the end"
    try:
        expected = load_info(ref)["bytes"]
    except TrainingError as error:
        return str(error).removeprefix(f"{ref.uri}: ")
    size = storage.file_size(storage.join(ref.uri, "checkpoint.pt"))
    if size is None:
        return "checkpoint.pt is missing"
    if size != expected:
        return f"checkpoint.pt has {size} bytes, {expected} were written"
    return ""


def _find_changed_bytes(ref: CheckpointRef, data: bytes | None = None) -> str:
    """Say whether checkpoint.pt differs from what was written; "" if not, or if nobody knows."""
    expected = load_info(ref).get("sha256")
    if expected is None:
        return ""
    digest = hash_bytes(data or storage.read_bytes(storage.join(ref.uri, "checkpoint.pt")))
    if digest == expected:
        return ""
    return f"checkpoint.pt was changed after it was written (SHA-256 {digest}, written {expected})"


def _digest_json(content: dict[str, Any]) -> str:
    return hash_bytes(json.dumps(content, sort_keys=True).encode())


def _names(categories: Sequence[Sequence[Any]]) -> list[str]:
    return [row[-1] for row in categories]
