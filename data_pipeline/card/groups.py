"""Columns of clips, sums over the clips of each video, and videos grouped by what they share.

Times are added up in whole milliseconds, so that another order of rows gives the same last digit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.card.charts import Doubles
from data_pipeline.card.facts import Group, Grouping
from data_pipeline.manifest import Clip, Video

Ints = NDArray[np.int64]

MAX_ROWS = 12  # of a table; what is beyond is added up in one line
MAX_SOURCES = 20
STATUS = {"kept": 0, "filtered": 1, "failed": 2}
SCORES = ("motion", "brightness", "black", "frozen")


@dataclass(frozen=True)
class Columns:
    """Clips by column: which usable video, whether that is a picture, verdict, length; scores with nan where
    there is none."""

    video: Ints
    is_picture: NDArray[np.bool_]
    status: Ints
    length_ms: Ints
    scores: dict[str, Doubles]

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        return np.asarray(self.status == STATUS["kept"])


def milliseconds(seconds: Iterable[float], count: int) -> Ints:
    return np.rint(1000 * np.fromiter(seconds, np.float64, count)).astype(np.int64)


def columns_of(clips: Sequence[Clip], number: Mapping[str, int], is_picture: NDArray[np.bool_]) -> Columns:
    """number: of the usable videos, by id; is_picture: of them."""
    num = len(clips)
    video = np.fromiter((number.get(clip.video_id, -1) for clip in clips), np.int64, num)

    def score(name: str) -> Doubles:
        found = (getattr(clip, name) for clip in clips)
        return np.fromiter((np.nan if value is None else value for value in found), np.float64, num)

    return Columns(
        video=video,
        is_picture=np.append(is_picture, False)[video],
        status=np.fromiter((STATUS[clip.status] for clip in clips), np.int64, num),
        length_ms=milliseconds((clip.end_s - clip.start_s for clip in clips), num),
        scores={name: score(name) for name in SCORES},
    )


@dataclass(frozen=True)
class PerVideo:
    """Sums over the clips of each usable video."""

    is_picture: NDArray[np.bool_]
    length_ms: Ints
    num_clips: Ints
    num_kept: Ints
    kept_ms: Ints

    @classmethod
    def of(cls, usable: Sequence[Video], columns: Columns, is_picture: NDArray[np.bool_]) -> PerVideo:
        has_video = columns.video >= 0
        is_kept = has_video & columns.is_kept

        def count(which: NDArray[np.bool_], weights: Ints | None = None) -> Ints:
            chosen = None if weights is None else weights[which]  # sums below 2**53 are exact
            return np.bincount(columns.video[which], chosen, len(usable)).astype(np.int64)

        return cls(
            is_picture=is_picture,
            length_ms=milliseconds((video.duration_s for video in usable), len(usable)),
            num_clips=count(has_video),
            num_kept=count(is_kept),
            kept_ms=count(is_kept, columns.length_ms),
        )

    def group(self, names: Sequence[str], limit: int) -> Grouping:
        """The videos by name, those with most kept seconds first."""
        rows = zip(names, self.num_kept.tolist(), self.num_clips.tolist(), self.kept_ms.tolist(), strict=True)
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for name, num_kept, num_clips, kept_ms in rows:
            found = sums[name]
            found[0] += 1
            found[1] += num_kept
            found[2] += num_clips
            found[3] += kept_ms
        groups = [Group(name, found[0], found[1], found[2], found[3] / 1000) for name, found in sums.items()]
        return _grouping(groups, limit, lambda group: (-group.kept_s, -group.num_videos, group.name))


def _grouping(groups: Iterable[Group], limit: int, order: Callable[[Group], Any]) -> Grouping:
    ordered = sorted(groups, key=order)
    if len(ordered) <= limit + 1:  # one line more says more than a sum of one
        return Grouping(tuple(ordered))
    left = ordered[limit:]
    rest = Group(
        "",
        sum(group.num_videos for group in left),
        sum(group.num_kept for group in left),
        sum(group.num_clips for group in left),
        sum(round(1000 * group.kept_s) for group in left) / 1000,
    )
    return Grouping(tuple(ordered[:limit]), len(left), rest)


def root_of(video: Video) -> str:
    """The source that a video's name is relative to; empty where its address does not tell."""
    return video.uri[: -len(video.name)] if video.name and video.uri.endswith(video.name) else ""


def source_names(usable: Sequence[Video], roots: Mapping[str, str]) -> list[str]:
    """For each video its source's first folder in which not all of them lie."""
    folders = [video.name.split("/")[:-1] for video in usable]
    shared: dict[str, list[str]] = {}
    for video, parts in zip(usable, folders, strict=True):
        known = shared.setdefault(roots[video.video_id], parts)
        same = next(
            (k for k, (a, b) in enumerate(zip(known, parts, strict=False)) if a != b),
            min(len(known), len(parts)),
        )
        if same < len(known):
            shared[roots[video.video_id]] = known[:same]
    is_one = len(set(roots.values())) <= 1
    names = []
    for video, parts in zip(usable, folders, strict=True):
        root = roots[video.video_id]
        inside = "/".join(parts[: len(shared[root]) + 1])
        names.append(
            (inside + "/" if inside else "(top level)") if is_one else root + (inside and inside + "/")
        )
    return names


def formats(usable: Sequence[Video], per_video: PerVideo) -> list[tuple[str, Grouping]]:
    timing = {False: "constant", True: "variable (VFR)", None: "not told by its headers"}
    still = "a still picture"
    names: dict[str, list[str]] = {
        "Resolution": [f"{video.width} × {video.height}" for video in usable],
        "Frame rate": [
            still
            if video.is_picture
            else f"{round(video.average_fps, 2):g} /s"
            if video.average_fps
            else "not told"
            for video in usable
        ],
        "Spacing of frames": [still if video.is_picture else timing[video.is_vfr] for video in usable],
        "Codec": [video.codec or "not told" for video in usable],
        "Container": [video.container or "not told" for video in usable],
        "Pixel format": [video.pixel_format or "not told" for video in usable],
        "Rotation": [f"{video.rotation}°" for video in usable],
    }
    return [(title, per_video.group(found, MAX_ROWS)) for title, found in names.items()]


def clip_sizes(kept: Sequence[Clip]) -> Grouping:
    counts = Counter((clip.width, clip.height) for clip in kept)
    seconds: Counter[tuple[int, int]] = Counter()
    videos: dict[tuple[int, int], set[str]] = defaultdict(set)
    for clip in kept:
        size = clip.width, clip.height
        seconds[size] += round(1000 * (clip.end_s - clip.start_s))
        videos[size].add(clip.video_id)
    groups = [
        Group(f"{size[0]} × {size[1]}", len(videos[size]), count, count, seconds[size] / 1000)
        for size, count in counts.items()
    ]
    return _grouping(groups, MAX_ROWS, lambda group: (-group.kept_s, group.name))
