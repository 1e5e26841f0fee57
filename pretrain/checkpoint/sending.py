"""Copies of a run's checkpoints in a store, made beside the loop: the store follows the run's folder.

A store that is away holds nothing up: what it lacks is sent with the next checkpoint, or by the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import CheckpointError, DataError
from pretrain.checkpoint.manifest import FOLDER, MANIFEST, parse_manifest, step_of
from pretrain.checkpoint.retention import Retention, read_scores
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.task import Task, wait_for_all
from pretrain.checkpoint.whole import step_folders
from pretrain.strategy.base import World


class Sending:
    """Of one run, on every rank. address: None for no store at all."""

    def __init__(
        self, run: Path, world: World, address: str | None, rule: Retention, say: Callable[[str], None]
    ) -> None:
        self._run, self._world, self._rule, self._say = run, world, rule, say
        self._store = Store(address) if address is not None else None
        self._task: Task[None] | None = None
        self._names: list[str] = []
        self._sent: set[str] = set()
        self._is_due = False
        self._was_said = False

    def begin(self, newest: str) -> None:
        """Send the checkpoint that was just made, and others that are kept and never arrived."""
        if self._store is None:
            return
        if self._task is not None:
            self._is_due = True  # once what is under way has ended
            return
        store, world = self._store, self._world
        told = world.gather_objects(self._unsent(newest) if world.is_first else None)[0]
        self._names, self._is_due = told, False
        self._task = Task(lambda: self._send(store, told))

    def follow(self) -> None:
        """After a step: when every rank has sent its files, the manifests; and what came due meanwhile."""
        if self._task is not None and not self._world.any(not self._task.is_done):
            self._settle()

    def finish(self) -> None:
        """Wait until all is sent, or could not be."""
        while self._task is not None:
            wait_for_all(self._world, self._task)
            self._settle()

    def _unsent(self, newest: str) -> list[str]:
        """Checkpoints to send, oldest first: the newest, and those kept that this start has not sent yet."""
        folders = {step_of(path.name) or 0: path.name for path in step_folders(self._run)}
        kept = self._rule.kept(list(folders), read_scores(self._run)) if folders else {}
        return [folders[step] for step in sorted(kept) if folders[step] not in self._sent - {newest}]

    def _send(self, store: Store, names: list[str]) -> None:
        """This rank's share of the files of each; what is not on this host, another's rank sends."""
        for name in names:
            folder = self._run / FOLDER / name
            try:
                data = (folder / MANIFEST).read_bytes()
            except OSError:
                continue  # a newer one has taken its place
            if store.has(name, data):
                continue
            manifest = parse_manifest(data, str(folder))
            if self._world.is_first:
                store.begin(name)
            for number, (file, facts) in enumerate(manifest["files"].items()):
                if number % self._world.size == self._world.rank and (folder / file).is_file():
                    store.send(name, folder / file, facts)

    def _settle(self) -> None:
        task, self._task = self._task, None
        assert task is not None and self._store is not None
        store = self._store

        def complete() -> None:
            task.result()

        try:
            self._world.together(complete)
            finishing = Task(lambda: self._name(store) if self._world.is_first else None)
            wait_for_all(self._world, finishing)
            self._world.together(finishing.result)
            self._was_said = False
            self._sent.update(self._names)
        except (CheckpointError, DataError, OSError) as error:
            if not self._was_said:
                self._say(
                    f"not copied to train.checkpoint_store: {error}; it stays in {self._run} and is sent "
                    f"with the next one"
                )
            self._was_said = True
        if self._is_due:
            newest = step_folders(self._run)
            self.begin(newest[0].name if newest else "")

    def _name(self, store: Store) -> None:
        """Rank 0, once all files are there: manifests, pointer; then what is no longer kept is removed."""
        listed = store.listed()
        for name in self._names:
            try:
                data = (self._run / FOLDER / name / MANIFEST).read_bytes()
            except OSError:
                continue
            files = parse_manifest(data, name)["files"]
            there = listed[name].files if name in listed else {}
            lacking = [file for file, facts in files.items() if there.get(file) != facts["bytes"]]
            if lacking:
                raise CheckpointError(f"{store.address(name)} lacks {', '.join(lacking[:3])}")
            store.finish(name, data)
        whole = {step_of(name) or 0: name for name, found in store.listed().items() if found.has_manifest}
        kept = self._rule.kept(list(whole), read_scores(self._run)) if whole else {}
        store.remove(name for step, name in whole.items() if step not in kept)
