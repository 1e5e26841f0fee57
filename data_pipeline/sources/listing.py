"""Which files are to be looked at: of folders, files, globs, s3:// prefixes and lists, in a fixed order."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipeline.errors import DataError, UsageError, why
from data_pipeline.sources import remote
from data_pipeline.sources.base import (
    PICTURE_ENDINGS,
    VIDEO_ENDINGS,
    Found,
    Ignored,
    Listing,
    SourceFile,
    printable,
)
from data_pipeline.sources.folders import find_file, walk_folder
from data_pipeline.sources.globs import compile_glob, depth_of, has_magic, split_glob
from data_pipeline.sources.lists import is_list, match_lists
from data_pipeline.sources.match import Tree, is_picture, is_video, match_videos
from data_pipeline.sources.robots import match_robots

# What is known of a file by being named there: the more says more.
FOLDER, ROBOTS, LIST = range(3)


def list_sources(sources: tuple[str, ...], root: str | None = None, pictures: bool = False) -> Listing:
    """All files that the sources hold, each once, sorted by name.

    root: folder or s3:// prefix that no line of a list may leave; None: the list's own folder. pictures:
    folders, prefixes and globs give still pictures too.
    A file that several sources hold is taken from a list before a LeRobot folder before anything else, then
    under its longest name: the order of the sources does not matter.
    Raises: UsageError when a source does not exist; DataError when no video is found in any, or a list or
    a LeRobot folder cannot be read.
    """
    ranked: list[tuple[int, SourceFile]] = []
    ignored: list[Ignored] = []
    lists = [source for source in sources if _is_list(source)]
    for source in sorted(set(sources) - set(lists)):
        tree, pattern = _open(source)
        if pattern == "":
            ranked += [(ROBOTS, file) for file in match_robots(tree)]
        found = match_videos(tree, _is_asked(tree, pattern), pattern is None, pictures)
        ranked += [(FOLDER, file) for file in found]
        ignored += tree.ignored
    files, passed = match_lists(lists, root)
    ranked += [(LIST, file) for file in files]
    ignored += passed
    chosen = _each_once(ranked)
    if not chosen:
        raise DataError(_nothing(sources, ignored, pictures))
    used = {file.uri for file in chosen}
    return Listing.of(chosen, {entry for entry in ignored if entry.is_wanted or entry.uri not in used})


def _is_list(source: str) -> bool:
    return is_list(source) and not has_magic(source) and not os.path.isdir(source)


def _open(source: str) -> tuple[Tree, str | None]:
    """What a source holds, and the glob that files have to match: empty for all, None for a file alone."""
    if remote.is_remote(source):
        return _open_remote(source)
    if os.path.isdir(source):
        return _tree(source, *walk_folder(source)), ""
    if os.path.lexists(source):
        return _tree(source, *find_file(source)), None
    if not has_magic(source):
        raise UsageError(
            f"the source {source} does not exist; `sources` takes folders, files, globs, lists and "
            f"s3:// prefixes"
        )
    folder, pattern = split_glob(source)
    if folder and not os.path.isdir(folder):
        raise UsageError(f"the source {source} finds nothing: there is no folder {folder}")
    return _tree(source, *walk_folder(folder or ".", depth_of(pattern))), pattern


def _open_remote(source: str) -> tuple[Tree, str | None]:
    remote.check_scheme(source)
    if has_magic(source):
        folder, pattern = split_glob(source)
        if folder == "s3://":
            raise UsageError(f"{source} has a sign of a glob in its bucket; name one bucket")
        return _tree(source, *remote.walk_prefix(folder)), pattern
    if (is_video(source) or is_picture(source)) and (found := remote.find_object(source)):
        return _tree(source, found, []), None
    found, ignored = remote.walk_prefix(source)
    if not found and not ignored:
        found = remote.find_object(source)
        if not found:
            raise UsageError(
                f"the source {source} does not exist: no object is below that prefix, nor is it one"
            )
        return _tree(source, found, []), None
    return _tree(source, found, ignored), ""


def _tree(source: str, found: list[Found], ignored: list[Ignored]) -> Tree:
    by_name: dict[str, Found] = {}
    for one in sorted(found, key=lambda one: (one.name, one.address)):
        first = by_name.setdefault(one.name, one)
        if first is not one:
            ignored.append(Ignored(one.uri, f"its name reads like that of {first.uri!r}, with other bytes"))

    def read(name: str) -> bytes:
        address = by_name[name].address
        if remote.is_remote(address):
            return remote.read_object(address)
        try:
            return Path(address).read_bytes()
        except OSError as error:
            raise DataError(f"{printable(address)} cannot be read: {why(error)}") from error

    return Tree(printable(source), by_name, ignored, read)


def _is_asked(tree: Tree, pattern: str | None) -> Callable[[str], bool]:
    """Which names a source asks for."""
    if not pattern:
        outright = posixpath.basename(tree.where)
        return (lambda name: name == outright) if pattern is None else (lambda name: True)
    if pattern in tree.found:  # a key of a store may hold the signs of a glob
        return lambda name: name == pattern
    match = compile_glob(pattern).fullmatch
    return lambda name: match(name) is not None


def _each_once(ranked: Iterable[tuple[int, SourceFile]]) -> list[SourceFile]:
    best: dict[str, tuple[tuple[int, int, str, str], SourceFile]] = {}
    for rank, file in ranked:
        order = (-rank, -len(file.name), file.name, file.uri)
        if file.address not in best or order < best[file.address][0]:
            best[file.address] = (order, file)
    return [file for _, file in best.values()]


def _nothing(sources: tuple[str, ...], ignored: list[Ignored], pictures: bool) -> str:
    where = printable(", ".join(sources))
    wanted = sorted(entry.reason for entry in ignored if entry.is_wanted)
    if wanted:
        first = "".join(f"\n  {reason}" for reason in wanted[:5])
        return f"none of the {len(wanted)} videos asked for in {where} can be used. The first:{first}"
    passed = f" (files passed over: {len(ignored)})" if ignored else ""
    num_pictures = sum(is_picture(entry.uri) for entry in ignored)
    if num_pictures and not pictures:
        return (
            f"no video is in {where}{passed}: `pictures: true` takes the {num_pictures} still pictures there"
        )
    kinds = ("video", "picture") if pictures else ("video",)
    endings = VIDEO_ENDINGS | PICTURE_ENDINGS if pictures else VIDEO_ENDINGS
    return (
        f"no {' or '.join(kinds)} is in {where}{passed}: put {'s or '.join(kinds)}s there, or name "
        f"another folder; their names end in {' '.join(sorted(endings))}"
    )
