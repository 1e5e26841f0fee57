"""Files that may change, vanish or be far away while a job works on them."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError, MissingError, StorageError
from data_pipeline.fetch import Scratch
from data_pipeline.manifest import Video
from data_pipeline.sources import SidecarFile, SourceFile

ATTEMPTS = 2  # a hang or crash is tried once more: the machine may have been short of something
BLOCK_BYTES = 16 << 20


class ChangedError(DataError):
    """A file is not what it was when the job looked at it."""


# Failures that another look may not see again: the machine or the store may have been short of something.
PASSING = frozenset({"TimedOutError", "CrashedError", "OutOfMemoryError", "StorageError", "ChangedError"})


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
        return scratch.local(ref.address)
    except MissingError as error:
        raise DataError(f"its sidecar is gone: {error}") from error


def fetch(scratch: Scratch, file: SourceFile, video: Video) -> Path:
    """The path of a video, or of a copy, as it was when it was inspected. Raises: DataError."""
    for attempt in itertools.count(1):
        try:
            path = scratch.local(file.address)
            break
        except StorageError:  # it has been retried for a minute; once more, then it costs the file
            if attempt >= ATTEMPTS:
                raise
    check_unchanged(file, video, path)
    return path


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
