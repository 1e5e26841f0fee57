"""Files of anywhere as files of this machine, for as long as one works on them.

Decoders and NumPy want a path: a local file is its own, a remote object is copied into a scratch folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from data_pipeline.storage import Storage

PREFIX, LOCK = "foreframe-scratch-", "lock"


class Scratch:
    """A folder of copies, made when first needed; a context manager that removes it.

    A killed process leaves its folder behind: the lock on it is free then, and the next Scratch removes it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock: int | None = None
        self._copies: dict[str, Path] = {}

    def local(self, address: str) -> Path:
        """The path of a file, or of a copy of a remote object. Raises: DataError as Storage does."""
        if "://" not in address:
            return Path(address)
        if address not in self._copies:
            root, name = address.rsplit("/", 1)
            ending = os.path.splitext(name)[1][:16]  # decoders look at it where the content is ambiguous
            path = self._made() / f"{len(self._copies):06d}{ending}"
            Storage(root).download(name, path)
            self._copies[address] = path
        return self._copies[address]

    def drop(self, address: str) -> None:
        """Remove the copy of one address, if there is one."""
        path = self._copies.pop(address, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def _made(self) -> Path:
        if self._folder is None:
            _sweep()
            new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))  # not seen by others until it is locked
            self._lock = os.open(new / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._folder = new.rename(new.with_name(new.name.removeprefix(".")))
        return self._folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._folder, self._lock = None, None
        self._copies.clear()


def _sweep() -> None:
    """Remove the folders that killed processes left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or gone in the meantime
            handle = os.open(folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
