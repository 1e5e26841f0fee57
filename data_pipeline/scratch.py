"""Folders that one process works with, of which nothing stays, not even after SIGKILL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "foreframe-scratch-", "lock"
UNLOCKED_S = 60.0


@contextlib.contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """A folder of this process, removed in the end.

    base: where it is made; None: where temporary files are (TMPDIR).
    A killed process leaves its folder behind: the lock on it is free then, and whoever makes the next one on
    that machine removes it.
    """
    base = base or Path(tempfile.gettempdir())
    _sweep(base)
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=base))  # not seen by others until it is locked
    lock = os.open(new / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(new.with_name(new.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _sweep(base: Path) -> None:
    """Remove the folders that killed processes left."""
    for folder in (*base.glob(f"{PREFIX}*"), *base.glob(f".{PREFIX}*")):
        with contextlib.suppress(OSError):  # another's, or gone in the meantime
            if folder.name.startswith(".") and time.time() - folder.stat().st_mtime < UNLOCKED_S:
                continue  # its process has not come to lock it yet
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
