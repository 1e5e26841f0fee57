"""Pure: of the files that one source holds, which are videos or pictures, and what else belongs to them.

The same for a folder and for an s3:// prefix, and for any order in which they are listed.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from data_pipeline.sources.base import (
    PICTURE_ENDINGS,
    SIDECAR_ENDINGS,
    VIDEO_ENDINGS,
    Found,
    Ignored,
    SidecarFile,
    SourceFile,
    Span,
)

# One table for all the cameras of an episode; where a folder has several, the first counts.
EPISODE_TABLES = ("trajectory.parquet", "episode.parquet", "actions.parquet")
# A table over more videos than that is a collection's: its rows would be wrong for all of them.
MAX_CAMERAS = 16


@dataclass
class Tree:
    """What one source holds. where: as messages name it; read: bytes of a file by its name."""

    where: str
    found: dict[str, Found]
    ignored: list[Ignored]
    read: Callable[[str], bytes]
    is_used: set[str] = field(default_factory=set)


def ending_of(name: str) -> str:
    return posixpath.splitext(name)[1]


def is_video(name: str) -> bool:
    return ending_of(name).lower() in VIDEO_ENDINGS


def is_picture(name: str) -> bool:
    return ending_of(name).lower() in PICTURE_ENDINGS


def match_videos(
    tree: Tree, is_asked: Callable[[str], bool], any_ending: bool = False, pictures: bool = False
) -> list[SourceFile]:
    """The videos among those asked for, each as one span, with what lies beside it.

    any_ending: the file was named outright. pictures: still pictures are taken too; no sidecar is theirs.
    Files that are asked for and neither videos nor theirs are noted in tree.ignored.
    """
    asked = [name for name in tree.found if name not in tree.is_used and is_asked(name)]
    videos = [name for name in asked if any_ending or is_video(name) or (pictures and is_picture(name))]
    sidecars = match_sidecars(tree.found, (name for name in videos if not is_picture(name)))
    files = []
    for name in videos:
        beside = sidecars.get(name)
        span = Span()
        if beside:
            is_shared = posixpath.basename(beside) in EPISODE_TABLES
            span = Span(sidecar=SidecarFile.of(tree.found[beside]), group=beside if is_shared else "")
        files.append(source_file(tree.found[name], (span,)))
    used = set(videos) | set(sidecars.values())
    tree.ignored += [
        Ignored(tree.found[name].uri, _why_not(name, pictures)) for name in asked if name not in used
    ]
    return files


def _why_not(name: str, pictures: bool) -> str:
    ending = ending_of(name)
    if posixpath.basename(name) in EPISODE_TABLES:
        return f"it is no episode's table: no video, or more than {MAX_CAMERAS}, lie below its folder"
    if not ending:
        return "it has no ending"
    if is_picture(name):  # and none is taken
        return f"its ending {ending} is a picture's: `pictures: true` takes those too"
    return f"its ending {ending} is no video's" + (" or picture's" if pictures else "")


def source_file(found: Found, spans: tuple[Span, ...]) -> SourceFile:
    return SourceFile(
        found.name, found.uri, found.address, found.size_bytes, found.mtime_ns, found.etag, spans
    )


def match_sidecars(found: Iterable[str], videos: Iterable[str]) -> dict[str, str]:
    """The sidecar of each video that has one: the file of its own name, else its episode's table.

    found: names of all files, or of those that can be sidecars.
    """
    of_stem: dict[str, str] = {}
    tables: dict[str, str] = {}
    for name in found:
        stem, ending = posixpath.splitext(name)
        if ending in SIDECAR_ENDINGS:
            rival = of_stem.get(stem)
            if rival is None or SIDECAR_ENDINGS.index(ending) < SIDECAR_ENDINGS.index(ending_of(rival)):
                of_stem[stem] = name
            folder, base = posixpath.split(name)
            if base in EPISODE_TABLES and _rank(base) < _rank(posixpath.basename(tables.get(folder, ""))):
                tables[folder] = name
    own, left = {}, []
    for video in videos:
        beside = of_stem.get(posixpath.splitext(video)[0])
        if beside and beside != video:
            own[video] = beside
        elif tables:
            left.append(video)
    taken = set(own.values())
    tables = {folder: name for folder, name in tables.items() if name not in taken}
    above: dict[str, str | None] = {}
    shared = {video: table for video in left if (table := _table_of(posixpath.dirname(video), tables, above))}
    num_videos = Counter(shared.values())
    return own | {video: table for video, table in shared.items() if num_videos[table] <= MAX_CAMERAS}


def _rank(base: str) -> int:
    return EPISODE_TABLES.index(base) if base in EPISODE_TABLES else len(EPISODE_TABLES)


def _table_of(folder: str, tables: dict[str, str], above: dict[str, str | None]) -> str | None:
    """The table of the nearest folder that has one, going up; above: what is known already."""
    passed = []
    while folder not in above:
        passed.append(folder)
        if folder in tables or not folder:
            above[folder] = tables.get(folder)
            break
        folder = posixpath.dirname(folder)
    for lower in passed:
        above[lower] = above[folder]
    return above[folder]
