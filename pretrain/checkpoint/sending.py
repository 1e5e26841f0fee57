"""Copies of a run's checkpoints in a store, made beside the loop: the store follows the run's folder.

A store that is away holds nothing up: what it lacks is sent with the next checkpoint, or by the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from data_pipeline.errors import CheckpointError, DataError
from data_pipeline.storage import Moved
from pretrain.checkpoint.manifest import FOLDER, MANIFEST, parse_manifest, step_of
from pretrain.checkpoint.retention import Retention, read_scores
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.task import Task, patiently, wait_for_all
from pretrain.checkpoint.whole import newest_named, step_folders
from pretrain.strategy.base import World


def is_sent(run: Path, address: str | None) -> bool:
    """Whether the newest checkpoint is in the store, and so all before it; True where there is no store.

    A store that does not answer does not have it.
    """
    newest = newest_named(run)
    if address is None or newest is None:
        return True
    try:
        return Store(address).has(newest[0].name, (newest[0] / MANIFEST).read_bytes())
    except (DataError, OSError):
        return False


class Sending:
    """Of one run, on every rank. address: None for no store at all.

    damaged: names that a resume found damaged in the store itself: they count for nothing, and go.
    """

    def __init__(
        self, run: Path, world: World, address: str | None, rule: Retention, say: Callable[[str], None]
    ) -> None:
        self._run, self._world, self.rule, self._say = run, world, rule, say
        self._store = Store(address) if address is not None else None
        self.damaged: set[str] = set()
        self._task: Task[None] | None = None
        self._newest = ""
        self._damaged_here: frozenset[str] = frozenset()
        self._names: list[str] = []
        self._sent: set[str] = set()
        self._is_due = False
        self._was_said = False

    def begin(self, newest: str, damaged_here: Collection[str]) -> None:
        """Send the newest checkpoint, made just now or resumed from, and others kept that never arrived.

        damaged_here: names that are not to be sent, nor what is later than the newest.
        """
        if self._store is None:
            return
        self._newest, self._damaged_here = newest, frozenset(damaged_here)
        self._sent.discard(newest)
        self._is_due = self._task is not None  # then once what is under way has ended
        if not self._is_due:
            self._start(self._store)

    def follow(self) -> None:
        """After a step: when every rank has sent its files, the manifests; and what came due meanwhile."""
        if self._task is not None and not self._world.any(not self._task.is_done):
            self._settle()

    def finish(self) -> None:
        """Wait until all is sent, or could not be."""
        while self._task is not None:
            wait_for_all(self._world, self._task)
            self._settle()

    def _start(self, store: Store) -> None:
        newest = self._newest
        try:
            names = patiently(self._world, lambda _: self._unsent() if self._world.is_first else [])[0]
        except (CheckpointError, DataError, OSError) as error:
            self._note_failure(error)
            return
        self._names = names
        self._task = Task(lambda moved: self._send(store, names, newest, moved))

    def _unsent(self) -> list[str]:
        """Checkpoints to send, oldest first: the newest, and those kept that this start has not sent yet."""
        last = step_of(self._newest) or 0
        folders = {step_of(path.name) or 0: path.name for path in step_folders(self._run)}
        whole = [step for step in folders if step <= last and folders[step] not in self._damaged_here]
        kept = self.rule.kept(whole, read_scores(self._run)) if whole else {}
        return [folders[step] for step in sorted(kept) if folders[step] not in self._sent]

    def _send(self, store: Store, names: list[str], newest: str, moved: Moved) -> None:
        """This rank's share of the files of each; what is not on this host, another's rank sends."""
        for name in names:
            folder = self._run / FOLDER / name
            try:
                data = (folder / MANIFEST).read_bytes()
            except OSError:
                continue  # a newer one has taken its place
            if store.has(name, data):
                continue
            try:
                self._send_files(store, name, data, moved)
            except CheckpointError:
                if name == newest:
                    raise
                continue  # an old one, damaged since: it must not keep the newest from being sent

    def _send_files(self, store: Store, name: str, data: bytes, moved: Moved) -> None:
        folder = self._run / FOLDER / name
        manifest = parse_manifest(data, str(folder))
        if self._world.is_first:
            store.begin(name)
        for number, (file, facts) in enumerate(manifest["files"].items()):
            if number % self._world.size == self._world.rank and (folder / file).is_file():
                store.send(name, folder / file, facts, moved)

    def _settle(self) -> None:
        task, self._task = self._task, None
        assert task is not None and self._store is not None
        store, names = self._store, self._names
        last = step_of(names[-1]) if names else None

        def complete() -> None:
            task.result()

        try:
            self._world.together(complete)
            patiently(self._world, lambda _: self._name(store, names, last) if self._world.is_first else None)
            self._was_said = False
            self._sent.update(names)
            self.damaged.difference_update(names)
        except (CheckpointError, DataError, OSError) as error:
            self._note_failure(error)
        if self._is_due:
            self._is_due = False
            self._start(store)

    def _note_failure(self, error: Exception) -> None:
        if not self._was_said:
            self._say(
                f"not copied to train.checkpoint_store: {error}; it stays in {self._run} and is sent "
                f"with the next one"
            )
        self._was_said = True

    def _name(self, store: Store, names: list[str], last: int | None) -> None:
        """Rank 0, once all files are there: manifests, pointer; then what is no longer kept is removed.

        last: step of the newest sent; what is later was not published by this run as it is now, and stays.
        """
        listed = store.listed()
        for name in names:
            try:
                data = (self._run / FOLDER / name / MANIFEST).read_bytes()
                files = parse_manifest(data, name)["files"]
            except (OSError, CheckpointError):
                continue
            there = listed[name].files if name in listed else {}
            lacking = [file for file, facts in files.items() if there.get(file) != facts["bytes"]]
            if not lacking:
                store.finish(name, data)
            elif step_of(name) == last:
                raise CheckpointError(f"{store.address(name)} lacks {', '.join(lacking[:3])}")
        if last is None:
            return
        damaged = self.damaged - set(names)
        found = store.listed()
        whole = {
            step: name
            for name in found
            if found[name].has_manifest and name not in damaged
            if (step := step_of(name)) is not None and step <= last
        }
        if not whole:
            return
        store.point_to(whole[max(whole)])
        kept = self.rule.kept(list(whole), read_scores(self._run))
        store.remove([*(name for step, name in whole.items() if step not in kept), *(damaged & found.keys())])
