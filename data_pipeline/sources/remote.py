"""What lies below an s3:// prefix, from one listing, named as a local folder would name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_pipeline.errors import MissingError, UsageError
from data_pipeline.sources.base import SIDECAR_ENDINGS, Found, Ignored
from data_pipeline.storage import Entry, Storage


def is_remote(source: str) -> bool:
    return "://" in source


def check_scheme(source: str) -> None:
    if not source.startswith("s3://"):
        scheme = source.split("://", 1)[0]
        raise UsageError(f"{source}: {scheme}:// is not read; name a folder, or an s3:// prefix")
    if not source.removeprefix("s3://").strip("/"):
        raise UsageError(f"{source} names no bucket; s3:// sources look like s3://bucket/prefix")


def walk_prefix(prefix: str) -> tuple[list[Found], list[Ignored]]:
    """All objects below a prefix whose names could be those of files in a folder, hidden ones left out.

    Raises: DataError when the bucket does not exist or may not be listed.
    """
    root = prefix.rstrip("/")
    return sift(root, Storage(root).walk())


def list_objects(root: str, below: str) -> Iterator[Found]:
    """All objects below a folder of a prefix, hidden ones too, by name relative to the prefix."""
    start = f"{root}/{below}" if below else root
    for entry in Storage(start).walk():
        name = f"{below}/{entry.name}" if below else entry.name
        yield Found(name, f"{root}/{name}", f"{root}/{name}", entry.size_bytes, entry.mtime_ns, entry.etag)


def sift(root: str, entries: Iterable[Entry]) -> tuple[list[Found], list[Ignored]]:
    found: list[Found] = []
    ignored: list[Ignored] = []
    for entry in entries:
        parts = entry.name.split("/")
        if not parts[-1]:
            continue  # how consoles and some tools write an empty folder
        if "" in parts or ".." in parts or "." in parts:
            reason = "no file could have this name: it has an empty part, `.` or `..` in it"
            ignored.append(Ignored(f"{root}/{entry.name}", reason))
        elif not any(part.startswith(".") for part in parts):
            found.append(_found(root, entry))
    return found, ignored


def _found(root: str, entry: Entry) -> Found:
    uri = f"{root}/{entry.name}"
    return Found(entry.name, uri, uri, entry.size_bytes, entry.mtime_ns, entry.etag)


def find_object(uri: str) -> list[Found]:
    """An object named outright and the sidecars beside it; empty when there is no such object."""
    folder, _, name = uri.rpartition("/")
    if folder in ("s3:/", "s3://"):  # a bucket alone
        return []
    storage = Storage(folder)
    stem = name.rpartition(".")[0] or name
    found = []
    for number, beside in enumerate([name, *(stem + ending for ending in SIDECAR_ENDINGS)]):
        if number and beside == name:
            continue
        try:
            found.append(_found(folder, storage.info(beside)))
        except MissingError:
            if number == 0:
                return []
    return found


def read_object(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    return Storage(folder).read(name)
