"""Whether what a person typed is a file or a folder; most of what is typed may be something else."""

from __future__ import annotations

from pathlib import Path


def is_file(path: str | Path) -> bool:
    """As Path.is_file; False too of what no file can be called, as a name of over 255 bytes."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """As Path.is_dir; False too of what no folder can be called."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False
