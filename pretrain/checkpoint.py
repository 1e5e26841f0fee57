"""Checkpoints that are whole or absent: fragments by rank, every file hashed, the manifest last.

    checkpoints/step-00000100/rank-00000-of-00002.safetensors   what each rank owns, by fragment
    checkpoints/step-00000100/manifest.json                     counters, config, hashes; written last
    checkpoints/latest                                          name of the newest whole one

A checkpoint is written under a name ending in `.part`; once all ranks have agreed that their files are on
disk, rank 0 writes the manifest, renames the folder and moves the pointer, each atomically. Since files hold
fragments by name and place, any world size and ZeRO stage reads any checkpoint, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.errors import CheckpointError, why
from data_pipeline.storage import sync_folder, write_whole
from pretrain.config import Plan, RunConfig
from pretrain.ema import Fragment
from pretrain.health import History
from pretrain.model.vit import Encoder
from pretrain.objective.masked import MaskedLatent
from pretrain.strategy.base import TARGET, Engine, Update, World

FOLDER = "checkpoints"
POINTER = "latest"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass
class Progress:
    """How far a run is; all of its counters.

    samples: clips consumed by the optimizer. skipped_in_row, skipped: steps whose gradient was not finite.
    """

    step: int = 0
    samples: int = 0
    skipped_in_row: int = 0
    skipped: int = 0
    history: History = field(default_factory=History)

    def after(self, update: Update, plan: Plan) -> Progress:
        row = 0 if update.applied else self.skipped_in_row + 1
        return Progress(
            step=self.step + 1,
            samples=self.samples + plan.config.train.global_batch,
            skipped_in_row=row,
            skipped=self.skipped + (not update.applied),
            history=self.history,
        )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "skipped_in_row": self.skipped_in_row,
            "skipped": self.skipped,
            "history": self.history.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "history": History.from_state(state["history"])})


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
        reached, end = wanted.start, wanted.start + wanted.numel
        for start, size, path, key in sorted(self._parts[kind, wanted.name]):
            if start <= reached < start + size and reached < end:
                stop = min(end, start + size)
                part = self._open[path].get_slice(key)[reached - start : stop - start]
                out[reached - wanted.start : stop - wanted.start] = part
                reached = stop
        if reached != end:
            raise CheckpointError(
                f"the checkpoint holds no {kind} of {wanted.name} from element {reached}: "
                f"it is of another model"
            )
        return out


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises: CheckpointError with the reason when there is none or it is of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: {error}") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise CheckpointError(f"{folder} has format version {found}; this release reads {FORMAT_VERSION}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises: CheckpointError naming the first file that is missing or not what was written.
    """
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes of {facts['bytes']}")
        if file_hash(path) != facts["sha256"]:
            raise CheckpointError(f"{path} was changed since it was written: its hash differs")
    return manifest


def step_folders(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first, whole or not."""
    folder = run / FOLDER
    return sorted(folder.glob("step-*[0-9]"), reverse=True) if folder.is_dir() else []


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


class Checkpoints:
    """Saves and resumes one run, on all ranks together.

    say: takes a sentence for the user, on rank 0.
    before_save: called first, so that what is logged is as old as what is saved.
    """

    def __init__(
        self, run: Path, plan: Plan, say: Callable[[str], None], before_save: Callable[[], None]
    ) -> None:
        self.run, self._plan, self._say, self._before_save = run, plan, say, before_save

    def resume(self, engine: Engine) -> Progress:
        """Load the newest whole checkpoint into the engine; a fresh Progress when there is none at all.

        Raises: CheckpointError when checkpoints exist and none is whole, or they are of another model.
        """
        found = self._agree(engine.world, lambda: self._find(engine.world))
        if found is None:
            return Progress()
        folder, manifest = found
        for sentence in manifest.pop("passed_over"):
            self._say(f"passed over a damaged checkpoint: {sentence}")
        stored = StoredFragments(folder / name for name in manifest["files"])
        engine.load(stored.read, manifest["optimizer_step"])
        progress = Progress.from_state(manifest["progress"])
        self._say(f"resumed from {folder} at step {progress.step}")
        return progress

    def _find(self, world: World) -> tuple[Path, dict[str, Any]] | None:
        if not world.is_first or not step_folders(self.run):
            return None
        folder, manifest, passed = newest_whole(self.run)
        return folder, {**manifest, "passed_over": passed}

    def _agree(self, world: World, find: Callable[[], Any]) -> Any:
        """Rank 0's answer on every rank; its CheckpointError too, so that no rank waits for another."""
        answer: tuple[str, Any]
        try:
            answer = ("found", find())
        except CheckpointError as error:
            answer = ("error", str(error))
        kind, value = world.gather_objects(answer)[0]
        if kind == "error":
            raise CheckpointError(value)
        return value

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write the whole state; on return every rank knows that the checkpoint is whole.

        Raises: CheckpointError on every rank when one could not write (no space left, no permission);
        checkpoints written before stay as they are.
        """
        self._before_save()
        world = engine.world
        final = self.run / FOLDER / f"step-{progress.step:08d}"
        part = final.with_name(final.name + ".part")
        name = f"rank-{world.rank:05d}-of-{world.size:05d}.safetensors"
        if world.is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
        world.barrier()
        reports = world.gather_objects(self._write_own(engine, part / name))
        failed = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(reports) if text]
        if not failed:
            files = {name: facts for _, found in reports for name, facts in found.items()}
            failed = [
                text
                for text in world.gather_objects(self._publish(engine, progress, part, final, files))
                if text
            ]
        if failed:
            if world.is_first:
                shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(
                f"no checkpoint at step {progress.step}: {'; '.join(failed)}; "
                f"earlier checkpoints are untouched; the same command goes on once the cause is mended"
            )
        return final

    def _write_own(self, engine: Engine, path: Path) -> tuple[str, dict[str, Any]]:
        """This rank's file on disk: ('', facts), or (why not, {})."""
        tensors = {key: t.detach().float().cpu().contiguous().clone() for key, t in engine.tensors().items()}
        try:
            save_file(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return "", {path.name: {"sha256": file_hash(path), "bytes": path.stat().st_size}}
        except (OSError, SafetensorError) as error:
            return f"{path} could not be written: {error}", {}

    def _publish(
        self, engine: Engine, progress: Progress, part: Path, final: Path, files: dict[str, Any]
    ) -> str:
        """Rank 0: the manifest, the folder's name, the pointer. '' or why not."""
        if not engine.world.is_first:
            return ""
        manifest = {
            "format_version": FORMAT_VERSION,
            "world_size": engine.world.size,
            "optimizer_step": engine.optimizer_step(),
            "progress": progress.state(),
            "config": self._plan.config.model_dump(mode="json"),
            "files": files,
        }
        try:
            write_whole(part / MANIFEST, json.dumps(manifest, indent=1).encode())
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            sync_folder(final.parent)
            write_whole(final.parent / POINTER, f"{final.name}\n".encode())
            self._prune(final.parent)
        except OSError as error:
            return f"{final} could not be published: {why(error)}"
        return ""

    def _prune(self, folder: Path) -> None:
        """Keep the newest whole checkpoints; what another save left unfinished goes too."""
        whole = [path for path in step_folders(folder.parent) if (path / MANIFEST).is_file()]
        for path in whole[self._plan.config.train.keep_checkpoints :]:
            shutil.rmtree(path, ignore_errors=True)
        for path in folder.glob("step-*.part"):
            shutil.rmtree(path, ignore_errors=True)


def read_run_config(run: Path) -> RunConfig:
    """The config that a run's newest whole checkpoint was trained with."""
    return RunConfig.model_validate(newest_whole(run)[1]["config"])


def untrained_encoder(config: RunConfig) -> Encoder:
    """The run's encoder before its first step: the baseline of every claim. On CPU, eval mode."""
    objective = MaskedLatent(config.objective, config.model, config.grid, "sdpa")
    objective.initialise(config.seed)
    return objective.encoder.eval().requires_grad_(False)


def load_encoder(run: Path, step: int | None = None) -> tuple[Encoder, RunConfig, int]:
    """The target encoder (moving average) of a checkpoint, float32 on CPU, with its config and step.

    step: None for the newest whole checkpoint. Raises: CheckpointError when there is no such one.
    """
    if step is None:
        folder, manifest, _ = newest_whole(run)
    else:
        folder = run / FOLDER / f"step-{step:08d}"
        if not folder.is_dir():
            have = (
                ", ".join(str(int(path.name.removeprefix("step-"))) for path in step_folders(run)) or "none"
            )
            raise CheckpointError(f"{run} has no checkpoint at step {step}; it has: {have}")
        manifest = verify(folder)
    config = RunConfig.model_validate(manifest["config"])
    encoder = untrained_encoder(config)
    stored = StoredFragments(folder / name for name in manifest["files"])
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(stored.read(TARGET, Fragment(name, 0, parameter.numel())).view_as(parameter))
    return encoder, config, manifest["progress"]["step"]
