"""Which files are videos to look at: folders, files and globs, listed in an order of their own."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_pipeline.errors import DataError, UsageError

VIDEO_ENDINGS = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".f4v",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
SIDECAR_ENDING = ".npz"


@dataclass(frozen=True)
class SourceFile:
    """One file to look at.

    name: relative to its source, which is what ids are made of; uri: as the config names it;
    path: on this machine; sidecar: path of the `.npz` beside it, if there is one.
    """

    name: str
    uri: str
    path: str
    size_bytes: int
    mtime_ns: int
    sidecar: str | None
    sidecar_mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """Files to look at, and (uri, reason) of those passed over; both sorted."""

    files: tuple[SourceFile, ...]
    ignored: tuple[tuple[str, str], ...]

    def fingerprint(self) -> str:
        """16 hex digits that change when a file comes, goes, or is written again."""
        lines = [f"{f.uri}\0{f.size_bytes}\0{f.mtime_ns}\0{f.sidecar_mtime_ns}" for f in self.files]
        lines += [f"{uri}\0{reason}" for uri, reason in self.ignored]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def list_sources(sources: tuple[str, ...]) -> Listing:
    """All files below the sources, each once, sorted by name.

    Raises: UsageError when a source does not exist; DataError when no video is found in any.
    """
    files: dict[str, SourceFile] = {}
    ignored: dict[str, str] = {}
    for source in sources:
        for path, name in _walk(source, ignored):
            uri = _printable(path)
            if not _is_taken(path, name, source):
                if not _is_sidecar(path):
                    ending = os.path.splitext(name)[1]
                    ignored[uri] = f"its ending {ending} is no video's" if ending else "it has no ending"
                continue
            files.setdefault(os.path.abspath(path), _source_file(path, name, uri))
    if not files:
        passed = f" (files passed over: {len(ignored)})" if ignored else ""
        raise DataError(
            f"no video is in {', '.join(sources)}{passed}: put videos there, or name another folder; "
            f"their names end in {' '.join(sorted(VIDEO_ENDINGS))}"
        )
    ordered = sorted(files.values(), key=lambda file: (file.name, file.uri))
    return Listing(tuple(ordered), tuple(sorted(ignored.items())))


def _walk(source: str, ignored: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(path, name relative to the source) of each file that is not hidden."""
    if "://" in source:
        raise UsageError(f"the source {source} is remote; this release reads local folders: copy or mount it")
    if os.path.isfile(source):
        yield source, os.path.basename(source)
        return
    if os.path.isdir(source):
        yield from _walk_folder(source, ignored)
        return
    if not glob.has_magic(source):
        raise UsageError(f"the source {source} does not exist; `sources` takes folders, files and globs")
    fixed = source[: min(source.index(mark) for mark in "*?[" if mark in source)]
    root = os.path.dirname(fixed)
    for path in glob.glob(source, recursive=True):
        if not os.path.isdir(path):
            yield path, str(PurePosixPath(os.path.relpath(path, root or ".")))


def _walk_folder(folder: str, ignored: dict[str, str]) -> Iterator[tuple[str, str]]:
    for parent, folders, names in os.walk(folder):
        for child in folders:
            if os.path.islink(os.path.join(parent, child)):
                linked = _printable(os.path.join(parent, child))
                ignored[linked] = "it is a link to a folder; name the folder as a source of its own"
        folders[:] = [child for child in folders if not child.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(parent, name)
                yield path, Path(os.path.relpath(path, folder)).as_posix()


def _is_taken(path: str, name: str, source: str) -> bool:
    """A file named outright is always looked at; in folders and globs, its ending decides."""
    return path == source or os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def _is_sidecar(path: str) -> bool:
    stem, ending = os.path.splitext(path)
    videos = (stem + form for video in VIDEO_ENDINGS for form in (video, video.upper()))
    return ending == SIDECAR_ENDING and any(map(os.path.exists, videos))


def _source_file(path: str, name: str, uri: str) -> SourceFile:
    try:
        found = os.stat(path)
        size_bytes, mtime_ns = found.st_size, found.st_mtime_ns
    except OSError:  # a dangling link: inspection says so, with its reason
        size_bytes, mtime_ns = 0, 0
    sidecar = os.path.splitext(path)[0] + SIDECAR_ENDING
    has_sidecar = os.path.isfile(sidecar)
    return SourceFile(
        name=_printable(name),
        uri=uri,
        path=os.path.abspath(path),
        size_bytes=size_bytes,
        mtime_ns=mtime_ns,
        sidecar=os.path.abspath(sidecar) if has_sidecar else None,
        sidecar_mtime_ns=os.stat(sidecar).st_mtime_ns if has_sidecar else 0,
    )


def _printable(path: str) -> str:
    """A path as valid UTF-8 text, whatever bytes its name has."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
