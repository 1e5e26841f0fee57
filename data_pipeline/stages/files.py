"""Files that may change, vanish or be far away while a job works on them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import FULL_DISK, DataError, MissingError, RefusedError, StorageError
from data_pipeline.fetch import Scratch
from data_pipeline.manifest import Video
from data_pipeline.sources import SidecarFile, SourceFile
from data_pipeline.storage import Storage

ATTEMPTS = 2  # a hang or crash is tried once more: the machine may have been short of something
BLOCK_BYTES = 16 << 20


class ChangedError(DataError):
    """A file is not what it was when the job looked at it."""


# Failures that another look may not see again: the machine or the store may have been short of something, and
# rights to an object can be given.
PASSING = frozenset(
    [
        *("TimedOutError", "CrashedError", "OutOfMemoryError"),
        *("StorageError", "ChangedError", "RefusedError", "MissingError"),
    ]
)


def hash_slowly(path: str | Path) -> Iterator[str | None]:
    """None after each block read, so that a deadline knows we live; the sha256 at last."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                yield None
    except OSError as error:
        raise DataError(f"it cannot be opened: {error.strerror or error}") from error
    yield digest.hexdigest()


def sidecar_path(scratch: Scratch, ref: SidecarFile) -> Path:
    try:
        path = scratch.local(ref.address)
        if "://" not in ref.address and ref.mtime_ns and os.stat(path).st_mtime_ns != ref.mtime_ns:
            raise ChangedError("its sidecar changed since it was listed")
    except (MissingError, FileNotFoundError) as error:
        raise MissingError(f"its sidecar is gone: {error}") from error
    return path


def fetch(scratch: Scratch, file: SourceFile, video: Video) -> Path:
    """The path of a video, or of a copy, as it was when it was inspected. Raises: DataError."""
    path = scratch.local(file.address)
    check_unchanged(file, video, path)
    return path


def end_if_all_would_fail(file: SourceFile, error: DataError) -> None:
    """Nothing when `error` is of this file alone, so that it costs the file and no more.

    A store that is down, credentials that ran out in mid-run or a full scratch disk would cost all files that
    are left. So the store is asked for something else: a listing, which it answered when the job began.
    Raises: what the store says of itself, or `error`, which is to end the job.
    """
    if "://" not in file.address:
        return
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK:
        raise error
    if isinstance(error, (MissingError, RefusedError, StorageError)):
        Storage(file.address.rsplit("/", 1)[0]).exists()


def check_unchanged(file: SourceFile, video: Video, path: Path) -> None:
    """Raises: ChangedError when the file is not the one that was inspected; MissingError when it is gone."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise MissingError(f"it is gone since it was inspected: {error.strerror}") from error
    if "://" not in file.address:
        is_same = not file.mtime_ns or (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.mtime_ns)
    else:
        *_, content = hash_slowly(path)
        is_same = content == video.content_sha256
    if not is_same:
        raise ChangedError("it changed since it was inspected; run the same command again when it is at rest")
