"""Finds the newest whole checkpoint, in a run's folder or in its store, and brings it here.

The ranks that share a folder share the work: each looks at its part of the files, and fetches those that are
missing or damaged where the store has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, DataError, why
from data_pipeline.storage import Moved, write_whole
from pretrain.checkpoint.manifest import FOLDER, MANIFEST, read_manifest, step_of, text_of
from pretrain.checkpoint.sharing import Sharing
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.task import patiently
from pretrain.checkpoint.whole import step_folders, verify_file
from pretrain.events import Void, last_void
from pretrain.strategy.base import World

Accept = Callable[[Path, dict[str, Any]], None]
"""Given a checkpoint's folder and manifest: raises ConfigError where it was made with other settings."""


@dataclass
class Found:
    """The newest whole checkpoint, None when there is none at all; names of what was passed over.

    damaged_there: those of them that the store was asked for, too. void: what the last rollback made void.
    """

    folder: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    damaged_there: set[str] = field(default_factory=set)
    void: Void | None = None


def is_begun(run: Path, store: str | None) -> bool:
    """Whether a run has checkpoints, here or in its store. Raises: DataError of the store."""
    if step_folders(run) or store is None:
        return bool(step_folders(run))
    return any(listed.has_manifest for listed in Store(store).listed().values())


def find(
    run: Path,
    store: str | None,
    world: World,
    sharing: Sharing,
    accept: Accept,
    say: Callable[[str], None],
    *,
    before: int | None = None,
) -> Found:
    """The newest checkpoint that is whole; what is missing of it here is fetched.

    accept: asked of what is whole here, and before anything is fetched. before: none of a later step counts,
    nor does one that a rollback has made void; both are named among the damaged.
    Raises, on every rank: CheckpointError when there are some, and none is whole; DataError when the store
    cannot be reached and the run's folder has none; what `accept` raises.
    """
    place = Store(store) if store is not None else None
    here, there = patiently(world, lambda _: _names(run, place, say) if world.is_first else ([], []))[0]
    passed: list[str] = []
    found = Found()
    void = found.void = patiently(world, lambda _: last_void(run) if world.is_first else None)[0]

    def is_void(name: str) -> bool:
        """Told by rank 0, from the manifest alone."""
        if void is None or (step_of(name) or 0) <= void.to_step:
            return False
        source = place if place is not None and name in there and name not in here else None
        return patiently(world, lambda _: _is_of(void, run, name, source) if world.is_first else False)[0]

    for name in sorted({*here, *there}, key=lambda name: step_of(name) or 0, reverse=True):
        if (before is not None and (step_of(name) or 0) > before) or is_void(name):
            found.damaged.add(name)
            found.damaged_there.update({name} & set(there))
            continue
        try:
            found.manifest = bring(run, name, place if name in there else None, world, sharing, accept)
        except CheckpointError as error:
            passed.append(str(error))
            found.damaged.add(name)
            found.damaged_there.update({name} & set(there))
            say(f"passed over a damaged checkpoint: {error}")
            continue
        found.folder = run / FOLDER / name
        return found
    if passed:
        raise CheckpointError(f"{run} has no whole checkpoint: {'; '.join(passed)}")
    return found


def _is_of(void: Void, run: Path, name: str, place: Store | None) -> bool:
    """Whether a checkpoint was made void; one whose manifest cannot be read is left to who reads it whole."""
    try:
        manifest = read_manifest(run / FOLDER / name) if place is None else place.manifest(name)
    except CheckpointError:
        return False
    progress = manifest["progress"]
    return void.covers(progress["step"], progress["changes"]["rollbacks"])


def _names(run: Path, place: Store | None, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Checkpoints in the folder; and whole ones in the store."""
    here = [folder.name for folder in step_folders(run)]
    if place is None:
        return here, []
    try:
        return here, [name for name, listed in place.listed().items() if listed.has_manifest]
    except DataError as error:
        if not here:  # else a run that has been going for weeks would begin anew
            raise
        say(f"train.checkpoint_store cannot be reached, checkpoints of the run's folder are taken: {error}")
        return here, []


def bring(
    run: Path, name: str, place: Store | None, world: World, sharing: Sharing, accept: Accept
) -> dict[str, Any]:
    """Make a checkpoint whole in every folder, and return its manifest.

    Where what is here cannot be made whole, the store's own of this step is taken, made by another start.
    Raises, on every rank: CheckpointError naming what is damaged or missing; DataError of the store; what
    `accept` raises.
    """
    folder = run / FOLDER / name
    manifest: dict[str, Any] = {}
    try:
        manifest = patiently(world, lambda _: read_manifest(folder) if world.is_first else {})[0]
        return _complete(folder, manifest, place, world, sharing, accept)
    except CheckpointError:
        if place is None:
            raise
        theirs = patiently(world, lambda _: place.manifest(name) if world.is_first else {})[0]
        if theirs == manifest:
            raise
    return _complete(folder, theirs, place, world, sharing, accept)


def _complete(
    folder: Path,
    manifest: dict[str, Any],
    place: Store | None,
    world: World,
    sharing: Sharing,
    accept: Accept,
) -> dict[str, Any]:
    share = list(manifest["files"])[sharing.index :: sharing.count]

    def look(moved: Moved) -> list[str]:
        """The files of this rank's share that are to be fetched."""
        lacking = []
        for file in share:
            try:
                verify_file(folder / file, manifest["files"][file], moved)
            except CheckpointError:
                if place is None:
                    raise
                lacking.append(file)
        return lacking

    lacking = patiently(world, look)[world.rank]
    world.together(lambda: accept(folder, manifest))

    def complete(moved: Moved) -> None:
        if place is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in lacking:
                place.fetch(folder.name, file, manifest["files"][file], folder / file, moved)
        except OSError as error:
            raise CheckpointError(f"{folder} could not be written: {why(error)}") from error

    patiently(world, complete)

    def name_it(_: Moved) -> None:
        """Where the folder has no manifest, or a damaged one: it could be read, or the store's is taken."""
        if place is not None and sharing.is_keeper and not _has(folder, manifest):
            write_whole(folder / MANIFEST, text_of(manifest))

    patiently(world, name_it)
    return manifest


def _has(folder: Path, manifest: dict[str, Any]) -> bool:
    try:
        return read_manifest(folder) == manifest
    except CheckpointError:
        return False
