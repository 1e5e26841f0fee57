"""Checkpoints at an address, a run's folder or s3://: listed, compared, sent, fetched, removed.

They lie there as in a run's folder. Files are sent first, then the manifest, then the pointer; removed in the
opposite order. So whatever has a manifest is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, MissingError
from data_pipeline.storage import Moved, Storage
from pretrain.checkpoint.manifest import FOLDER, MANIFEST, POINTER, parse_manifest, step_of
from pretrain.checkpoint.whole import _unseen, verify_file

READ_BYTES = 16 << 20


@dataclass
class Listed:
    """What lies in one checkpoint's folder: bytes of each file by name, and when the manifest was written."""

    files: dict[str, int] = field(default_factory=dict)
    mtime_s: float = 0.0

    @property
    def has_manifest(self) -> bool:
        return MANIFEST in self.files


class Store:
    """Checkpoints below an address. Raises from every method: DataError, as Storage does."""

    def __init__(self, root: str | Path) -> None:
        self._storage = Storage(root)
        self.root = self._storage.root

    def listed(self) -> dict[str, Listed]:
        """Everything there, whole or not, by the names of the checkpoints."""
        found: dict[str, Listed] = {}
        for entry in self._storage.walk(FOLDER):
            step, _, name = entry.name.removeprefix(f"{FOLDER}/").partition("/")
            if step_of(step) is None or not name:
                continue
            listed = found.setdefault(step, Listed())
            listed.files[name] = entry.size_bytes
            if name == MANIFEST:
                listed.mtime_s = entry.mtime_ns / 1e9
        return found

    def newest(self) -> str | None:
        """The checkpoint that the pointer names; None without one."""
        try:
            return self._storage.read(f"{FOLDER}/{POINTER}").decode(errors="replace").strip()
        except MissingError:
            return None

    def address(self, name: str) -> str:
        return self._storage.address(f"{FOLDER}/{name}")

    def manifest(self, name: str) -> dict[str, Any]:
        """Raises: CheckpointError when there is none that can be read."""
        try:
            data = self._storage.read(f"{FOLDER}/{name}/{MANIFEST}")
        except MissingError as error:
            raise CheckpointError(f"{self.address(name)} has no {MANIFEST}") from error
        return parse_manifest(data, self.address(name))

    def check(self, name: str, file: str, facts: dict[str, Any], moved: Moved = _unseen) -> None:
        """Hold a file against what the manifest says, reading all of it.

        Raises: CheckpointError naming it.
        """
        address = self._storage.address(f"{FOLDER}/{name}/{file}")
        digest, size = hashlib.sha256(), facts["bytes"]
        try:
            found = self._storage.info(f"{FOLDER}/{name}/{file}").size_bytes
            if found != size:
                raise CheckpointError(f"{address} has {found} bytes of {size}")
            for start in range(0, size, READ_BYTES):
                count = min(READ_BYTES, size - start)
                digest.update(self._storage.read(f"{FOLDER}/{name}/{file}", start, count))
                moved(count)
        except MissingError as error:
            raise CheckpointError(f"{address} is missing") from error
        if digest.hexdigest() != facts["sha256"]:
            raise CheckpointError(f"{address} was changed since it was written: its hash differs")

    def has(self, name: str, manifest: bytes) -> bool:
        """Whether this very checkpoint is there, whole."""
        place = f"{FOLDER}/{name}/{MANIFEST}"
        return self._storage.exists(place) and self._storage.read(place) == manifest

    def begin(self, name: str) -> None:
        """Before files are sent: what is there under this name counts no more."""
        self._storage.remove(f"{FOLDER}/{name}/{MANIFEST}")

    def send(self, name: str, path: Path, facts: dict[str, Any], moved: Moved = _unseen) -> None:
        """Copy one file there. Raises: CheckpointError when it is not what its manifest says."""
        verify_file(path, facts, moved)
        self._storage.publish(f"{FOLDER}/{name}/{path.name}", path, moved)

    def finish(self, name: str, manifest: bytes) -> None:
        """All files are there: the manifest makes them a checkpoint."""
        self._storage.publish(f"{FOLDER}/{name}/{MANIFEST}", manifest)

    def point_to(self, name: str) -> None:
        """Let the pointer name the newest checkpoint."""
        if self.newest() != name:
            self._storage.publish(f"{FOLDER}/{POINTER}", f"{name}\n".encode())

    def fetch(
        self, name: str, file: str, facts: dict[str, Any], target: Path, moved: Moved = _unseen
    ) -> None:
        """Copy one file to this machine, whole or not at all.

        Raises: CheckpointError when it is missing there, or not what the manifest says.
        """
        try:
            self._storage.download(f"{FOLDER}/{name}/{file}", target, moved)
        except MissingError as error:
            raise CheckpointError(f"{self.address(name)}/{file} is missing") from error
        try:
            verify_file(target, facts, moved)
        except CheckpointError as error:
            target.unlink(missing_ok=True)
            raise CheckpointError(f"{self.address(name)}/{file} is damaged: {error}") from error

    def remove(self, names: Iterable[str]) -> None:
        """Remove checkpoints, each one's manifest first."""
        for name in names:
            place = f"{FOLDER}/{name}"
            self._storage.remove(f"{place}/{MANIFEST}")
            self._storage.remove_many([entry.name for entry in self._storage.walk(place)])
