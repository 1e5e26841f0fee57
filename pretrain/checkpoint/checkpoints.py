"""Saves and resumes one run, on all ranks together, while training goes on.

A save copies the state to host memory, which is all that the loop waits for, and writes it in a thread. No
collective runs there: after each step the ranks ask each other whether all are done, and publish together.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, DataError, why
from data_pipeline.storage import Moved
from pretrain import pulse
from pretrain.checkpoint.fragments import StoredFragments
from pretrain.checkpoint.manifest import FOLDER, FORMAT_VERSION, rank_file, sealed, step_name
from pretrain.checkpoint.publish import point, publish, remove
from pretrain.checkpoint.resume import Accept, Found, find
from pretrain.checkpoint.retention import Retention, clear, doomed, sound_until, take_out
from pretrain.checkpoint.sending import Sending
from pretrain.checkpoint.sharing import find_sharing
from pretrain.checkpoint.task import Task, patiently, wait_for_all
from pretrain.checkpoint.write import HostCopy
from pretrain.config import Plan
from pretrain.parts import CHECKPOINT, marked
from pretrain.progress import Progress
from pretrain.strategy.base import Engine, World

TROUBLE = (CheckpointError, DataError, OSError)


@dataclass
class _Pending:
    """A save under way. facts: of this rank's file, once it is on disk."""

    step: int
    part: Path
    final: Path
    manifest: dict[str, Any]
    facts: Task[dict[str, Any]]


class Checkpoints:
    """Of one run, on every rank; all methods are called by all ranks together.

    data_fingerprint: of the data set; a run does not go on with another one. code: version and commit.
    say: takes a sentence for the user, on rank 0.
    before_save: called first, in a thread, so that what is logged is as old as what is saved.

    Every rank writes its own file; all else in a folder does its keeper (`Sharing`).
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        world: World,
        data_fingerprint: str,
        code: Mapping[str, str | None],
        say: Callable[[str], None],
        before_save: Callable[[], None],
    ) -> None:
        self.run, self._plan, self._world = run, plan, world
        self._data_fingerprint, self._code = data_fingerprint, dict(code)
        self._say, self._before_save = say, before_save
        train = plan.config.train
        self._rule = Retention(train.keep_checkpoints, train.keep_every, train.keep_best)
        self._copy = HostCopy()
        self._sharing = find_sharing(run, world)
        self._pending: _Pending | None = None
        self._sending = Sending(run, world, train.checkpoint_store, self._rule, say)
        self._cleaning: Task[None] | None = None
        self._damaged: set[str] = set()
        self._stalls_ms: list[float] = []
        self.failed = 0

    def resume(self, engine: Engine, accept: Accept = lambda *_: None) -> Progress:
        """Load the newest whole checkpoint into the engine; a fresh Progress when there is none at all.

        What the store lacks of it is sent, and waited for where no step is left to take.
        accept: raises ConfigError where a checkpoint was made with settings that this run may not change.
        Raises, on every rank: CheckpointError when checkpoints exist and none is whole, or they are of
        another model or data set; DataError when the store cannot be reached and nothing is here.
        """
        if self._sharing.is_keeper:
            self._clean(lambda: clear(self.run))
        store = self._plan.config.train.checkpoint_store
        found = find(self.run, store, self._world, self._sharing, accept, self._say)
        self._damaged, self._sending.damaged = found.damaged, found.damaged_there
        if found.folder is None:
            return Progress()
        progress = self._load(engine, found)
        if found.void is not None:
            progress = found.void.applied(progress)
        self._go_on_from(found)
        self._say(f"resumed from {found.folder} at step {progress.step}")
        if progress.step >= self._plan.steps:
            self._sending.finish()
        return progress

    def go_back(
        self, engine: Engine, before: int, note: Callable[[Progress], None] = lambda _: None
    ) -> Progress | None:
        """Load the newest whole checkpoint of a step up to `before`; later ones go. None when there is none.

        note: called on rank 0 before any is removed, with how far the run was then.
        """
        self._settle()
        self._sending.finish()
        store = self._plan.config.train.checkpoint_store
        try:
            found = find(
                self.run, store, self._world, self._sharing, lambda *_: None, self._say, before=before
            )
        except CheckpointError as error:  # there are some, and none is whole
            self._say(str(error))
            return None
        if found.folder is None:
            return None
        progress = self._load(engine, found)
        patiently(self._world, lambda _: note(progress) if self._world.is_first else None)
        self._damaged, self._sending.damaged = found.damaged, found.damaged_there
        self._go_on_from(found)
        return progress

    def _go_on_from(self, found: Found) -> None:
        """What is later, or damaged, or no longer kept goes, here and in the store."""
        assert found.folder is not None
        self._retain(found.folder.name, found.manifest)
        self._sending.begin(found.folder.name, self._damaged)

    def _load(self, engine: Engine, found: Found) -> Progress:
        folder, manifest = found.folder, found.manifest
        assert folder is not None
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

        stored = self._world.own(open_stored)
        engine.load(stored.read, manifest["optimizer_step"])
        return Progress.from_state(manifest["progress"])

    @marked(CHECKPOINT)
    def save(self, engine: Engine, progress: Progress, *, is_last: bool) -> None:
        """Begin to write the whole state; where it is the last of this start, it is whole on return.

        A save that fails is said and counted, and the run goes on: earlier checkpoints are untouched.
        Raises, on every rank: CheckpointError when the last save failed, and failed again.
        """
        pulse.beat("checkpoint")
        self._settle()
        if not is_last:
            try:
                self._begin(engine, progress)
            except TROUBLE as error:
                self._note_failure(progress.step, error)
            if not self._plan.config.train.save_in_background:
                self._settle()
            return
        try:
            self._save_now(engine, progress)
        except TROUBLE as first:
            self._note_failure(progress.step, first)
            try:
                self._save_now(engine, progress)
            except TROUBLE as error:
                raise CheckpointError(
                    f"no checkpoint at step {progress.step}: {_sentence(error)}; earlier checkpoints are "
                    f"untouched; the same command goes on once the cause is mended"
                ) from error
        self._sending.finish()
        patiently(self._world, lambda _: self._cleaning.wait() if self._cleaning is not None else None)

    @marked(CHECKPOINT)
    def follow(self) -> None:
        """After a step without a save: publish what was being written, once all ranks are done."""
        pending = self._pending
        if pending is not None and not self._world.any(not pending.facts.is_done):
            self._settle()
        self._sending.follow()

    def take_metrics(self) -> dict[str, float]:
        """Milliseconds that saves have held up the loop since they were last asked for, and failed saves."""
        stalls, self._stalls_ms = self._stalls_ms, []
        found = {"checkpoint/failed": float(self.failed)} if self.failed else {}
        return found | ({"perf/save_stall_ms": sum(stalls)} if stalls else {})

    def _save_now(self, engine: Engine, progress: Progress) -> None:
        self._begin(engine, progress)
        assert self._pending is not None
        pending, self._pending = self._pending, None
        self._finish(pending)

    def _begin(self, engine: Engine, progress: Progress) -> None:
        """Copy the state to host memory, and start to write it."""
        began_s = time.perf_counter()
        final = self.run / FOLDER / step_name(progress.step)
        part = final.with_name(f"{final.name}.part")
        world = self._world

        def prepare(_: Moved) -> None:
            self._before_save()
            if self._cleaning is not None:
                self._cleaning.wait()  # it must not take away what is begun now
            if self._sharing.is_keeper:
                shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)

        patiently(world, prepare)
        world.together(lambda: self._copy.take(engine.tensors()))
        manifest = {
            "format_version": FORMAT_VERSION,
            "world_size": world.size,
            "optimizer_step": engine.optimizer_step(),
            "progress": json.loads(json.dumps(progress.state())),  # as it is now: the loop goes on
            "config": self._plan.config.model_dump(mode="json"),
            "code": self._code,
            "data_fingerprint": self._data_fingerprint,
        }
        path = part / rank_file(world.rank, world.size)

        def write(moved: Moved) -> dict[str, Any]:
            path.parent.mkdir(exist_ok=True)  # every host has its own where they share no folder
            return {path.name: self._copy.write(path, moved)}

        self._pending = _Pending(progress.step, part, final, manifest, Task(write))
        self._stalls_ms.append(1000 * (time.perf_counter() - began_s))

    def _settle(self) -> None:
        """Wait for the save under way, if there is one, and publish it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._finish(pending)
        except TROUBLE as error:
            self._note_failure(pending.step, error)

    def _finish(self, pending: _Pending) -> None:
        """Wait for every rank's file; then the manifest, the folder's name, the pointer; then retention.

        Raises, on every rank: CheckpointError, DataError, OSError when one could not.
        """
        began_s = time.perf_counter()
        world, final = self._world, pending.final
        is_keeper = self._sharing.is_keeper
        try:
            wait_for_all(world, pending.facts)
            facts = world.together(pending.facts.result)
            files = {name: told for found in facts for name, told in found.items()}
            text = sealed(pending.manifest | {"written_s": time.time(), "files": files})
            # first where the run will be looked for, then in the folders of those that do not share it
            patiently(world, lambda _: publish(pending.part, final, text) if world.is_first else None)
            others = is_keeper and not world.is_first
            patiently(world, lambda _: publish(pending.part, final, text) if others else None)
        except TROUBLE:
            patiently(world, lambda _: shutil.rmtree(pending.part, ignore_errors=True) if is_keeper else None)
            raise
        self._damaged.discard(final.name)  # what was is no more: this one is whole
        self._retain(final.name, pending.manifest)
        self._sending.begin(final.name, self._damaged)
        self._stalls_ms.append(1000 * (time.perf_counter() - began_s))

    def _retain(self, newest: str, manifest: Mapping[str, Any]) -> None:
        """Let go what the settings do not keep, now that the newest is known to be whole.

        Nothing depends on it: what could not be let go now is at the next save.
        """

        self._rule = self._sending.rule = replace(self._rule, healthy=sound_until(manifest))

        def let_go(names: list[str]) -> None:
            if self._sharing.is_keeper:
                point(self.run / FOLDER, newest)
                take_out(self.run, names)
                self._clean(lambda: remove(self.run / FOLDER, [*names, newest]))

        def choose(_: Moved) -> list[str]:
            return doomed(self.run, self._rule, newest, self._damaged) if self._world.is_first else []

        try:
            names = patiently(self._world, choose)[0]
            patiently(self._world, lambda _: let_go(names))
        except TROUBLE as error:
            self._say(f"earlier checkpoints were not removed: {_sentence(error)}")

    def _clean(self, work: Callable[[], None]) -> None:
        """Remove files beside the loop, one thing after the other: large ones take seconds."""
        before = self._cleaning

        def after(_: Moved) -> None:
            if before is not None:
                before.wait()
            work()

        self._cleaning = Task(after)

    def _note_failure(self, step: int, error: Exception) -> None:
        self.failed += 1
        self._say(
            f"no checkpoint at step {step}: {_sentence(error)}; earlier ones are untouched, the run goes on"
        )


def _sentence(error: Exception) -> str:
    return why(error) if isinstance(error, OSError) else str(error)
