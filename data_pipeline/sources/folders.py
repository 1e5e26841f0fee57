"""What lies in a local folder: every file, in whatever order the disk tells, and what cannot be one."""

from __future__ import annotations

import os
import stat

from data_pipeline.errors import why
from data_pipeline.sources.base import KINDS_OF_FILE, SIDECAR_ENDINGS, Found, Ignored, printable


def walk_folder(folder: str, max_depth: int | None = None) -> tuple[list[Found], list[Ignored]]:
    """All files below a folder that are not hidden; links to files are followed, links to folders are not.

    max_depth: folders deep, 1 for those directly in it; None for all. A dangling link is a file: looking
    at it says what is wrong.
    """
    found: list[Found] = []
    ignored: list[Ignored] = []
    todo = [("", 1)]
    while todo:
        below, depth = todo.pop()
        here = os.path.join(folder, below) if below else folder
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{below}/{entry.name}" if below else entry.name
                    is_deepest = max_depth is not None and depth >= max_depth
                    if entry.is_dir(follow_symlinks=False):
                        if not is_deepest:
                            todo.append((name, depth + 1))
                    elif entry.is_symlink() and os.path.isdir(entry.path):  # entry.is_dir() raises on loops
                        if not is_deepest:
                            ignored.append(Ignored(_uri(folder, name), LINKED))
                    else:
                        _take(folder, name, found, ignored)
        except OSError as error:  # a folder that may not be read, or a file where it was: it is named
            ignored.append(
                Ignored(_uri(folder, below), f"this folder cannot be listed: {why(error)}", is_wanted=True)
            )
    return found, ignored


LINKED = "it is a link to a folder; name the folder as a source of its own"


def find_file(path: str) -> tuple[list[Found], list[Ignored]]:
    """A file named outright, and the sidecars that lie beside it."""
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    found: list[Found] = []
    ignored: list[Ignored] = []
    _take(folder, name, found, ignored)
    for ending in SIDECAR_ENDINGS:
        if stem + ending != name and os.path.isfile(os.path.join(folder, stem + ending)):
            _take(folder, stem + ending, found, ignored)
    return found, ignored


def _take(folder: str, name: str, found: list[Found], ignored: list[Ignored]) -> None:
    path = os.path.join(folder, name)
    try:
        about = os.stat(path)
    except OSError:  # a dangling link, or gone since: inspection says so, with its reason
        found.append(Found(printable(name), _uri(folder, name), os.path.abspath(path)))
        return
    if stat.S_ISREG(about.st_mode):
        found.append(about_file(folder, name, about))
    else:
        kind = KINDS_OF_FILE.get(stat.S_IFMT(about.st_mode), "special file")
        ignored.append(Ignored(_uri(folder, name), f"it is a {kind}, no file"))


def about_file(folder: str, name: str, about: os.stat_result) -> Found:
    path, address = printable(os.path.join(folder, name)), os.path.abspath(os.path.join(folder, name))
    address = path if path == address else address  # one text rather than two equal ones, of each of millions
    return Found(printable(name), path, address, about.st_size, about.st_mtime_ns)


def _uri(folder: str, name: str) -> str:
    return printable(os.path.join(folder, name) if name else folder)
