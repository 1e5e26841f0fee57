"""Parts: what one encoding task made, kept beside the shards until they are written.

    parts/<stem>.tar            the members of its kept clips, each clip's one after the other
    parts/<stem>.clips.parquet  one row a clip with its scores and verdict, written last: without it, no part

A part's rows are Clip records whose shard, offset and size_bytes point into the part.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
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


def read_rows(storage: Storage, sizes: Mapping[str, int]) -> dict[str, list[Clip]]:
    """The rows of finished parts by stem, save those that cannot be read or tell of more than the tar holds.

    sizes: of the parts' tars, as `finished_parts` found them.
    """
    stems = list(sizes)
    found: dict[str, list[Clip]] = {}
    for start in range(0, len(stems), READ_AT_ONCE):
        some = stems[start : start + READ_AT_ONCE]
        for stem, data in zip(some, storage.read_many([part_rows(stem) for stem in some]), strict=True):
            with contextlib.suppress(DataError):  # half a record is no record: the part is made again
                rows, _ = from_parquet(data, Clip)
                if max(((row.offset or 0) + (row.size_bytes or 0) for row in rows), default=0) < sizes[stem]:
                    found[stem] = rows
    return found


def finished_parts(storage: Storage, plans: Sequence[PartPlan]) -> dict[str, int]:
    """The planned parts that have tar and rows, by stem with the bytes of the tar; from one listing."""
    sizes = {entry.name.rsplit("/", 1)[-1]: entry.size_bytes for entry in storage.walk(PARTS_FOLDER)}
    tars = {plan.stem: Path(part_tar(plan.stem)).name for plan in plans}
    return {
        stem: sizes[tar] for stem, tar in tars.items() if tar in sizes and Path(part_rows(stem)).name in sizes
    }
