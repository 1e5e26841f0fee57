"""Whose `out` is: one job at a time, no stranger's files, no other data set's."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError, why
from data_pipeline.format import (
    CARD_FILE,
    DATASET_FILE,
    DEAD_LETTERS_FILE,
    MANIFEST_FILE,
    SHARDS_FOLDER,
    DatasetInfo,
    read_info,
)
from data_pipeline.index import Index
from data_pipeline.manifest import VIDEOS_FILE
from data_pipeline.parts import PARTS_FOLDER
from data_pipeline.previews import PREVIEWS_FILE
from data_pipeline.storage import Storage

TABLES = (MANIFEST_FILE, VIDEOS_FILE, PREVIEWS_FILE, DEAD_LETTERS_FILE, CARD_FILE)
LOCK_FILE = ".lock"


@contextlib.contextmanager
def alone(config: DataConfig) -> Iterator[None]:
    """For the length of a `with` no other job of this machine writes to `config.out`; local folders only.

    Raises: UsageError when one does.
    """
    folder = Storage(config.out).local_path()
    if folder is None:
        yield
        return
    is_new = not folder.exists()
    lock = folder / LOCK_FILE
    try:
        _refuse_strangers(folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"out is {config.out}, where nothing can be written: {why(error)}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise UsageError(
                f"another job is writing to {config.out}: wait for its end, or give another `out`"
            )
        try:
            yield
        finally:
            if is_new and list(folder.iterdir()) == [lock]:  # a job that came to nothing leaves no folder
                with contextlib.suppress(OSError):
                    lock.unlink()
                    folder.rmdir()
    finally:
        os.close(handle)


def _refuse_strangers(folder: Path) -> None:
    """Raises: UsageError when no job of ours was in a folder that holds what a job would replace."""
    if not folder.is_dir() or (folder / LOCK_FILE).exists() or (folder / DATASET_FILE).exists():
        return
    strangers = [name for name in (*TABLES, PARTS_FOLDER, SHARDS_FOLDER) if (folder / name).exists()]
    if strangers:
        raise UsageError(
            f"out is {folder}, which holds {' and '.join(strangers[:3])} that no job of ours wrote, or whose "
            f"{DATASET_FILE} and {LOCK_FILE} are gone: give another `out`, or move them away"
        )


def refuse_other(config: DataConfig, found: Index | None) -> DatasetInfo | None:
    """The finished data set at `out` when it is this very one; None when there is none.

    Raises: UsageError when it is another one's.
    """
    storage = Storage(config.out)
    if not storage.exists(DATASET_FILE):
        return None
    info = read_info(storage)
    other = "config" if info.config_fingerprint != config.fingerprint() else ""
    if not other and found is not None and info.source_fingerprint != found.fingerprint():
        other = "set of videos"
    if other:
        raise UsageError(
            f"{config.out} holds a finished data set of another {other}; "
            f"give another `out`, or --force to replace it"
        )
    return info
