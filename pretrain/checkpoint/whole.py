"""Which checkpoints a run's folder has, and whether each is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, why
from data_pipeline.storage import Moved
from pretrain.checkpoint.manifest import FOLDER, read_manifest, step_name, step_of


def _unseen(_: int) -> None:
    pass


def file_hash(path: Path, moved: Moved = _unseen) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            moved(len(block))
    return digest.hexdigest()


def verify(folder: Path, moved: Moved = _unseen) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises: CheckpointError naming the first file that is missing or not what was written.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest, moved=moved)
    return manifest


def verify_files(
    folder: Path, manifest: dict[str, Any], first: int = 0, every: int = 1, moved: Moved = _unseen
) -> None:
    """Check the first-th, then every every-th file of a checkpoint: one rank's share of the hashing.

    Raises: CheckpointError as `verify`.
    """
    for name, facts in list(manifest["files"].items())[first::every]:
        verify_file(folder / name, facts, moved)


def verify_file(path: Path, facts: dict[str, Any], moved: Moved = _unseen) -> None:
    """Hold a file against what its manifest says: its bytes and their sha256.

    Raises: CheckpointError naming it.
    """
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes of {facts['bytes']}")
        if file_hash(path, moved) != facts["sha256"]:
            raise CheckpointError(f"{path} was changed since it was written: its hash differs")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {why(error)}") from error


def step_folders(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first, whole or not."""
    folder = run / FOLDER
    found = [path for path in folder.iterdir() if step_of(path.name) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: step_of(path.name) or 0, reverse=True)


def newest_named(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint with a readable manifest, its files not looked at; None when there is none."""
    for folder in step_folders(run):
        try:
            return folder, read_manifest(folder)
        except CheckpointError:
            continue
    return None


def newest_whole(run: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that verifies, its manifest, and what was passed over and why.

    Raises: CheckpointError when there is none.
    """
    passed: list[str] = []
    for folder in step_folders(run):
        try:
            return folder, verify(folder), passed
        except CheckpointError as error:
            passed.append(str(error))
    reasons = "; ".join(passed)
    raise CheckpointError(f"{run} has no whole checkpoint" + (f": {reasons}" if reasons else ""))


def chosen_checkpoint(run: Path, step: int | None = None) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint of a step, or the newest whole one, as `newest_whole`.

    Raises: CheckpointError when there is no such one, or it is damaged.
    """
    if step is None:
        return newest_whole(run)
    folder = run / FOLDER / step_name(step)
    if not folder.is_dir():
        have = ", ".join(str(step_of(path.name)) for path in step_folders(run)) or "none"
        raise CheckpointError(f"{run} has no checkpoint at step {step}; it has: {have}")
    return folder, verify(folder), []
