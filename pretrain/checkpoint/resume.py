"""Finds the newest whole checkpoint, in a run's folder or in its store, and brings it here.

The ranks share the work: each looks at every world-th file, and fetches it where it is missing or damaged and
the store has it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, DataError, why
from data_pipeline.storage import write_whole
from pretrain.checkpoint.manifest import FOLDER, MANIFEST, read_manifest, step_of
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.task import patiently
from pretrain.checkpoint.whole import step_folders, verify_file
from pretrain.strategy.base import World


@dataclass
class Found:
    """The newest whole checkpoint, None when there is none at all; names of what was passed over."""

    folder: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)


def find(run: Path, store: str | None, world: World, say: Callable[[str], None]) -> Found:
    """The newest checkpoint that is whole; what is missing of it here is fetched.

    Raises, on every rank: CheckpointError when there are some, and none is whole; DataError when the store
    cannot be reached and the run's folder has none.
    """
    place = Store(store) if store is not None else None
    here, there = patiently(world, lambda: _names(run, place, say) if world.is_first else ([], []))[0]
    passed: list[str] = []
    found = Found()
    for name in sorted({*here, *there}, key=lambda name: step_of(name) or 0, reverse=True):
        try:
            found.manifest = bring(run, name, place if name in there else None, world)
        except CheckpointError as error:
            passed.append(str(error))
            found.damaged.add(name)
            say(f"passed over a damaged checkpoint: {error}")
            continue
        found.folder = run / FOLDER / name
        return found
    if passed:
        raise CheckpointError(f"{run} has no whole checkpoint: {'; '.join(passed)}")
    return found


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


def bring(run: Path, name: str, place: Store | None, world: World) -> dict[str, Any]:
    """Make a checkpoint whole on every host, and return its manifest.

    Raises, on every rank: CheckpointError naming what is damaged or missing; DataError of the store.
    """
    folder = run / FOLDER / name

    def agree_on_manifest() -> dict[str, Any]:
        if not world.is_first:
            return {}
        try:
            return read_manifest(folder)
        except CheckpointError:
            if place is None:
                raise
        return place.manifest(name)

    manifest = world.together(agree_on_manifest)[0]
    index, count = local_share(world)

    def complete() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in list(manifest["files"])[index::count]:
                try:
                    verify_file(folder / file, manifest["files"][file])
                except CheckpointError:
                    if place is None:
                        raise
                    place.fetch(name, file, manifest["files"][file], folder / file)
        except OSError as error:
            raise CheckpointError(f"{folder} could not be written: {why(error)}") from error

    patiently(world, complete)

    def name_it() -> None:
        if place is not None and index == 0 and not (folder / MANIFEST).is_file():
            write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    world.together(name_it)
    return manifest


def local_share(world: World) -> tuple[int, int]:
    """This rank's place among those of its host, and how many they are."""
    hosts = world.gather_objects(socket.gethostname())
    mine = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
    return mine.index(world.rank), len(mine)
