"""Parts: what one encoding task made, kept beside the shards until they are written.

    parts/<stem>.tar            the members of its kept clips, each clip's one after the other
    parts/<stem>.clips.parquet  one row a clip with its scores and verdict, written last: without it, no part

A part's rows are Clip records whose shard, offset and size_bytes point into the part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.clips import PartPlan
from data_pipeline.errors import DataError
from data_pipeline.format import Member
from data_pipeline.manifest import Clip, from_parquet, to_parquet
from data_pipeline.shards import members_digest, samples_in_tar
from data_pipeline.storage import Storage

PARTS_FOLDER = "parts"
ROWS = ".clips.parquet"
READ_AT_ONCE = 256  # of a million clips, the bytes of all parts are as large as their rows


def part_tar(stem: str) -> str:
    return f"{PARTS_FOLDER}/{stem}.tar"


def part_rows(stem: str) -> str:
    return f"{PARTS_FOLDER}/{stem}{ROWS}"


def place(stem: str, rows: Sequence[Clip], members: list[Member]) -> list[Clip]:
    """The rows with the place of each clip's members in the part's tar, for those that have any."""
    spans = samples_in_tar(members)
    of_clip: dict[str, list[Member]] = {}
    for member in members:
        of_clip.setdefault(member.key, []).append(member)
    return [
        dataclasses.replace(
            row,
            shard=stem,
            offset=spans[row.clip_id][0],
            size_bytes=spans[row.clip_id][1],
            members_sha256=members_digest(of_clip[row.clip_id]),
        )
        if row.clip_id in spans
        else row
        for row in rows
    ]


def publish_rows(storage: Storage, stem: str, rows: list[Clip]) -> None:
    """The rows of a part whose tar is published; with them it counts."""
    storage.publish(part_rows(stem), to_parquet(rows, Clip))


def read_rows(storage: Storage, stems: Sequence[str]) -> list[list[Clip] | None]:
    """The rows of finished parts, in order; None for a part whose rows cannot be read."""
    found: list[list[Clip] | None] = []
    for start in range(0, len(stems), READ_AT_ONCE):
        names = [part_rows(stem) for stem in stems[start : start + READ_AT_ONCE]]
        for data in storage.read_many(names):
            try:
                found.append(from_parquet(data, Clip)[0])
            except DataError:  # half a record is no record: the part is made again
                found.append(None)
    return found


def finished_parts(storage: Storage, plans: Sequence[PartPlan]) -> set[str]:
    """Stems of the planned parts that are whole, by one listing."""
    names = set(storage.names(PARTS_FOLDER))
    return {
        plan.stem
        for plan in plans
        if all(Path(path(plan.stem)).name in names for path in (part_tar, part_rows))
    }
