"""A folder that is whole or not there: written beside its place, brought to disk, renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.errors import CheckpointError, UsageError, why
from data_pipeline.storage import sync_folder

TENSORS = "model.safetensors"
LOCK = ".lock"
OURS = (
    TENSORS,
    "model.json",
    "config.json",
    "video_preprocessor_config.json",
    "import.json",
    "README.md",
    LOCK,
)


def check_out(out: Path, *, force: bool) -> None:
    """Raises: UsageError when `out` exists, unless it holds weights and may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if not force:
        raise UsageError(f"{out} exists: name another folder, or replace it with --force")
    if out.is_symlink() or not (out / TENSORS).is_file():
        raise UsageError(f"{out} is no folder of weights (it has no {TENSORS}): --force does not replace it")
    if others := sorted(path.name for path in out.iterdir() if path.name not in OURS):
        raise UsageError(
            f"{out} holds {', '.join(others[:3])} beside weights, which --force would remove: name another"
        )


@contextmanager
def whole_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `out`, which becomes `out` when the block ends well, and else leaves nothing.

    What a killed process left there is removed by the next that writes to the same place.
    Raises: UsageError as `check_out`, or when another process writes to the same place; CheckpointError
    when it cannot be written.
    """
    out = out.absolute()
    old = out.with_name(f".{out.name}.old")
    if old.is_dir() and not out.exists():  # a process was killed between the two steps of replacing it
        old.rename(out)
    check_out(out, force=force)
    part = out.with_name(f".{out.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        with (part / LOCK).open("w") as lock:
            _hold(lock.fileno(), out)
            _empty(part)
            try:
                yield part
                for path in sorted(part.iterdir()):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(part)
                _swap(part, out, force=force)
            except BaseException:  # nothing half-written stays, whatever it was; the error goes on
                shutil.rmtree(part, ignore_errors=True)
                raise
        sync_folder(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out} could not be written: {why(error)}") from error


def _hold(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(f"another process is writing {out}: wait for its end, or name another") from error


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _swap(part: Path, out: Path, *, force: bool) -> None:
    """Put the new folder in the place of the old one; when that fails, the old one stays."""
    check_out(out, force=force)
    old = out.with_name(f".{out.name}.old")
    is_replaced = out.exists()
    if is_replaced:
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    try:
        part.rename(out)
    except OSError:
        if is_replaced:
            old.rename(out)
        raise
    (out / LOCK).unlink()  # held until now: nobody else empties the folder before it has its name
    shutil.rmtree(old, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors as safetensors: the same tensors make the same bytes. Raises: CheckpointError."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
        path.chmod(mode)  # safetensors lets only the owner read
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises: CheckpointError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {why(error)}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or damaged, or no safetensors file: {error}; get it once more"
        ) from error


def write_json(path: Path, plain: Any) -> None:
    path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: CheckpointError when the file is missing, unreadable or something else."""
    try:
        plain = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {why(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return plain
