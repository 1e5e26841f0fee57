"""Checkpoints that are whole or absent: fragments by rank, every file hashed, the manifest last.

    checkpoints/step-00000100/rank-00000-of-00002.safetensors   what each rank owns, by fragment
    checkpoints/step-00000100/manifest.json                     counters, config, hashes; written last
    checkpoints/latest                                          name of the newest one, for people and scripts

A checkpoint is written under a name ending in `.part`; once all ranks have agreed that their files are on
disk, rank 0 writes the manifest, renames the folder and moves the pointer, each atomically. Since files hold
fragments by name and place, any world size and ZeRO stage reads any checkpoint, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.errors import CheckpointError, DataError, why
from data_pipeline.storage import sync_folder, write_whole
from pretrain.config import Plan, RunConfig
from pretrain.ema import Fragment
from pretrain.model.vit import Encoder
from pretrain.objective.make import first_encoder, make_objective
from pretrain.progress import Progress
from pretrain.strategy.base import TARGET, Engine, World
from pretrain.strategy.shards import MASTER

FOLDER = "checkpoints"
POINTER = "latest"
MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # 2: the order of samples of format 1 was another, so a run cannot go on in it


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class StoredFragments:
    """Reads any run of elements of any stored tensor out of a checkpoint's files."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._parts: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = defaultdict(list)
        self._open: dict[Path, Any] = {}
        for path in files:
            self._open[path] = safe_open(path, framework="pt")
            for key in self._open[path].keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                kind, _, rest = key.partition("/")
                name, _, start = rest.rpartition("@")
                size = self._open[path].get_slice(key).get_shape()[0]
                self._parts[kind, name].append((int(start), size, path, key))

    def read(self, kind: str, wanted: Fragment) -> Tensor:
        """The float32 elements (numel,) of a fragment, put together from whatever files hold them.

        Raises: CheckpointError when a part is missing.
        """
        out = torch.empty(wanted.numel)
        for part, start, stop, first in self._found(kind, wanted):
            out[start:stop] = part[first : first + stop - start]
        return out

    def check(self, kind: str, wanted: Fragment) -> None:
        """Raises CheckpointError, as `read` would, without reading."""
        for _ in self._found(kind, wanted):
            pass

    def _found(self, kind: str, wanted: Fragment) -> Iterator[tuple[Any, int, int, int]]:
        """(stored tensor, start and stop in the fragment, first element in the stored tensor), in order."""
        reached, end = wanted.start, wanted.start + wanted.numel
        for start, size, path, key in sorted(self._parts[kind, wanted.name]):
            if start <= reached < start + size and reached < end:
                stop = min(end, start + size)
                stored = self._open[path].get_slice(key)
                yield stored, reached - wanted.start, stop - wanted.start, reached - start
                reached = stop
        if reached != end:
            raise CheckpointError(
                f"the checkpoint holds no {kind} of {wanted.name} from element {reached}: "
                f"it is of another model"
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises: CheckpointError with the reason when there is none or it is of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format version {version}; this release reads {FORMAT_VERSION}")
    if missing := {"files", "config", "progress", "optimizer_step", "data_fingerprint"} - manifest.keys():
        raise CheckpointError(f"{folder} has a {MANIFEST} without {', '.join(sorted(missing))}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises: CheckpointError naming the first file that is missing or not what was written.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return manifest


def verify_files(folder: Path, manifest: dict[str, Any], first: int = 0, every: int = 1) -> None:
    """Check the first-th, then every every-th file of a checkpoint: one rank's share of the hashing.

    Raises: CheckpointError as `verify`.
    """
    for name, facts in list(manifest["files"].items())[first::every]:
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise CheckpointError(f"{path} has {size} bytes of {facts['bytes']}")
            if file_hash(path) != facts["sha256"]:
                raise CheckpointError(f"{path} was changed since it was written: its hash differs")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing") from error
        except OSError as error:
            raise CheckpointError(f"{path} could not be read: {why(error)}") from error


def step_folders(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first, whole or not."""
    folder = run / FOLDER
    return sorted(folder.glob("step-*[0-9]"), reverse=True) if folder.is_dir() else []


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
    folder = run / FOLDER / f"step-{step:08d}"
    if not folder.is_dir():
        have = ", ".join(str(int(path.name.removeprefix("step-"))) for path in step_folders(run)) or "none"
        raise CheckpointError(f"{run} has no checkpoint at step {step}; it has: {have}")
    return folder, verify(folder), []


class Checkpoints:
    """Saves and resumes one run, on all ranks together.

    data_fingerprint: of the data set; a run does not go on with another one.
    say: takes a sentence for the user, on rank 0.
    before_save: called first, so that what is logged is as old as what is saved.
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        data_fingerprint: str,
        say: Callable[[str], None],
        before_save: Callable[[], None],
    ) -> None:
        self.run, self._plan, self._data_fingerprint = run, plan, data_fingerprint
        self._say, self._before_save = say, before_save
        self._damaged: set[Path] = set()

    def resume(self, engine: Engine) -> Progress:
        """Load the newest whole checkpoint into the engine; a fresh Progress when there is none at all.

        Raises, on every rank: CheckpointError when checkpoints exist and none is whole, or they are of
        another model or data set.
        """
        world = engine.world
        found = self._find(world)
        if found is None:
            return Progress()
        folder, manifest = found
        if manifest["data_fingerprint"] != self._data_fingerprint:
            raise CheckpointError(
                f"{folder} was trained on data with fingerprint {manifest['data_fingerprint']}, "
                f"data.shards now holds {self._data_fingerprint}: name the data set it began with (of "
                f"a mixture: the same, equally weighted, in the same order), or a new run with name=..."
            )

        def open_stored() -> StoredFragments:
            stored = StoredFragments(folder / name for name in manifest["files"])
            for kind, fragment in engine.owned():
                stored.check(kind, fragment)
            return stored

        stored = world.own(open_stored)
        engine.load(stored.read, manifest["optimizer_step"])
        progress = Progress.from_state(manifest["progress"])
        self._say(f"resumed from {folder} at step {progress.step}")
        return progress

    def _find(self, world: World) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole; None when there is none at all."""
        names = world.together(lambda: [f.name for f in step_folders(self.run)] if world.is_first else [])[0]
        passed: list[str] = []
        for name in names:
            folder = self.run / FOLDER / name
            try:
                manifest = self._verified(world, folder)
            except CheckpointError as error:
                passed.append(str(error))
                self._damaged.add(folder)
                self._say(f"passed over a damaged checkpoint: {error}")
                continue
            return folder, manifest
        if passed:
            raise CheckpointError(f"{self.run} has no whole checkpoint: {'; '.join(passed)}")
        return None

    def _verified(self, world: World, folder: Path) -> dict[str, Any]:
        """A checkpoint's manifest, each rank having hashed its share of the files."""
        manifest = world.together(lambda: read_manifest(folder) if world.is_first else {})[0]
        world.together(lambda: verify_files(folder, manifest, world.rank, world.size))
        return manifest

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write the whole state; on return every rank knows that the checkpoint is whole.

        Raises: CheckpointError on every rank when one could not write (no space left, no permission);
        checkpoints written before stay as they are.
        """
        world = engine.world
        final = self.run / FOLDER / f"step-{progress.step:08d}"
        part = final.with_name(final.name + ".part")
        name = f"rank-{world.rank:05d}-of-{world.size:05d}.safetensors"

        def begin() -> None:
            self._before_save()
            if world.is_first:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True, exist_ok=True)

        try:
            world.together(begin)
            reports = world.together(lambda: self._write_own(engine, part / name))
            files = {name: facts for found in reports for name, facts in found.items()}
            world.together(lambda: self._publish(engine, progress, part, final, files))
        except (CheckpointError, DataError, OSError) as error:
            if world.is_first:
                shutil.rmtree(part, ignore_errors=True)
            reason = why(error) if isinstance(error, OSError) else error
            raise CheckpointError(
                f"no checkpoint at step {progress.step}: {reason}; "
                f"earlier checkpoints are untouched; the same command goes on once the cause is mended"
            ) from error
        return final

    def _write_own(self, engine: Engine, path: Path) -> dict[str, Any]:
        """This rank's file on disk, and its facts by name."""
        tensors = {key: t.detach().float().cpu().contiguous().clone() for key, t in engine.tensors().items()}
        try:
            save_file(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return {path.name: {"sha256": file_hash(path), "bytes": path.stat().st_size}}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} could not be written: {error}") from error

    def _publish(
        self, engine: Engine, progress: Progress, part: Path, final: Path, files: dict[str, Any]
    ) -> None:
        """Rank 0: the manifest, the folder's name, the pointer; then what is no longer kept."""
        if not engine.world.is_first:
            return
        manifest = {
            "format_version": FORMAT_VERSION,
            "world_size": engine.world.size,
            "optimizer_step": engine.optimizer_step(),
            "progress": progress.state(),
            "config": self._plan.config.model_dump(mode="json"),
            "data_fingerprint": self._data_fingerprint,
            "files": files,
        }
        try:
            write_whole(part / MANIFEST, json.dumps(manifest, indent=1).encode())
            if final.exists():  # written before a damaged part of it made the run go back
                shutil.rmtree(final)
            part.rename(final)
            sync_folder(final.parent)
            write_whole(final.parent / POINTER, f"{final.name}\n".encode())
        except OSError as error:
            raise CheckpointError(f"{final} could not be published: {why(error)}") from error
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Keep the newest checkpoints up to the one just saved.

        What was passed over as damaged does not count and goes, as do later steps, which can only be such,
        and what another save left unfinished.
        """
        whole = [
            path
            for path in step_folders(self.run)
            if (path / MANIFEST).is_file() and path <= newest and path not in (self._damaged - {newest})
        ]
        kept = whole[: self._plan.config.train.keep_checkpoints]
        for path in [*step_folders(self.run), *newest.parent.glob("step-*.part")]:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def read_run_config(run: Path) -> RunConfig:
    """The config that a run's newest whole checkpoint was trained with."""
    return RunConfig.model_validate(newest_whole(run)[1]["config"])


def untrained_encoder(config: RunConfig) -> Encoder:
    """The run's encoder before its first step: the baseline of every claim. On CPU, eval mode."""
    return first_encoder(make_objective(config), config)


def load_encoder(run: Path, step: int | None = None) -> tuple[Encoder, RunConfig, int]:
    """The target encoder (moving average) of a checkpoint, float32 on CPU, with its config and step.

    Where there is none, or it never moved (target.kind online or frozen), the context encoder.
    step: None for the newest whole checkpoint. Raises: CheckpointError when there is no such one.
    """
    folder, manifest, passed = chosen_checkpoint(run, step)
    for sentence in passed:
        logging.getLogger("foreframe").warning("passed over a damaged checkpoint: %s", sentence)
    config = RunConfig.model_validate(manifest["config"])
    encoder = untrained_encoder(config)
    stored = StoredFragments(folder / name for name in manifest["files"])
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            kind, stored_as = (MASTER, f"encoder.{name}") if config.learns_in_context else (TARGET, name)
            whole = Fragment(stored_as, 0, parameter.numel())
            parameter.copy_(stored.read(kind, whole).view_as(parameter))
    return encoder, config, manifest["progress"]["step"]
