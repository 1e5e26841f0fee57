"""Makes what was written a checkpoint, removes what no longer counts. Called by a folder's keeper alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from data_pipeline.errors import CheckpointError, why
from data_pipeline.storage import sync_folder, write_whole
from pretrain.checkpoint.manifest import MANIFEST, POINTER
from pretrain.checkpoint.retention import GONE


def publish(part: Path, final: Path, manifest: bytes) -> None:
    """The manifest, the folder's name, the pointer. What bears this very manifest already is left as it is.

    Raises: CheckpointError.
    """
    try:
        if not _is_published(final, manifest):
            write_whole(part / MANIFEST, manifest)
            sync_folder(part)
            _put(part, final)
            sync_folder(final.parent)
        point(final.parent, final.name)
    except OSError as error:
        raise CheckpointError(f"{final} could not be published: {why(error)}") from error


def _put(part: Path, final: Path) -> None:
    """Give `part` its name. What has it, from before a damaged part made the run go back, is set aside."""
    if not final.exists():
        part.rename(final)
        return
    aside = final.with_name(final.name + GONE)
    shutil.rmtree(aside, ignore_errors=True)
    final.rename(aside)
    try:
        part.rename(final)
    except OSError:
        aside.rename(final)
        raise


def _is_published(final: Path, manifest: bytes) -> bool:
    try:
        return (final / MANIFEST).read_bytes() == manifest
    except (FileNotFoundError, NotADirectoryError):
        return False


def point(folder: Path, name: str) -> None:
    """Let the pointer name the newest checkpoint. Raises: OSError."""
    text = f"{name}\n".encode()
    with suppress(FileNotFoundError):
        if (folder / POINTER).read_bytes() == text:
            return
    for left in folder.glob(f".{POINTER}.*.part"):  # by a start that was killed in the next line
        left.unlink(missing_ok=True)
    write_whole(folder / POINTER, text)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of checkpoints that were taken out or set aside."""
    for name in names:
        shutil.rmtree(folder / (name + GONE), ignore_errors=True)
