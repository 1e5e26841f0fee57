"""From the verdicts on all clips to shards: who is kept, on which side, in which shard; and the bytes.

`decide` is pure and reads no clip; `build_shard` copies clips from their parts and decodes none.
"""

from __future__ import annotations

import dataclasses
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

from data_pipeline.clips import assign_splits, in_shard_order, stable_id
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError, why
from data_pipeline.filters import near_duplicates
from data_pipeline.format import FORMAT_VERSION, SPLITS, Member, ShardDone, shard_stem, tar_name
from data_pipeline.manifest import Clip, Video
from data_pipeline.parts import part_tar
from data_pipeline.shards import hash_file, members_digest, publish_records, read_members, tar_end
from data_pipeline.storage import Storage

RUN_BYTES = 32 << 20  # neighbours in a part are read together, up to that much


@dataclass(frozen=True, slots=True)
class Piece:
    """One clip's stretch of a part's tar, and the digest of the members that must lie there."""

    clip_id: str
    part: str
    offset: int
    size: int
    members_sha256: str


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One idempotent task: these stretches of parts, in this order, are the shard."""

    stem: str
    split: str
    pieces: tuple[Piece, ...]
    fingerprint: str


@dataclass(frozen=True)
class Decision:
    """Every clip's row as the manifest will have it, and the shards to build."""

    clips: list[Clip]
    shards: list[ShardPlan]


def decide(
    rows: Sequence[Clip],
    videos: Mapping[str, Video],
    config: DataConfig,
    splits: Mapping[str, str],
    before: Sequence[Clip] = (),
) -> Decision:
    """Leave out near-duplicates, give each video its side, pack the clips that are kept into shards.

    rows: as the parts have them. splits: videos whose side a list has decided.
    before: the manifest of shards that stand already: their rows stay, new shards are numbered after them.
    """
    rows = _without_duplicates(rows, videos, config, before)
    known = {clip.recording: splits[clip.video_id] for clip in rows if clip.video_id in splits}
    known |= {clip.recording: clip.split for clip in before if clip.status == "kept"}
    num_clips = Counter(clip.recording for clip in (*rows, *before) if clip.status == "kept")
    sides = assign_splits(num_clips, config.split.eval_fraction, known)
    first = Counter(split for split, _ in {(clip.split, clip.shard) for clip in before if clip.shard})
    placed: list[Clip] = []
    plans: list[ShardPlan] = []
    for split in SPLITS:
        kept = [clip for clip in rows if clip.status == "kept" and sides[clip.recording] == split]
        for bundle in _bundles(in_shard_order(kept), config.shards.target_bytes):
            stem = shard_stem(split, first[split])
            first[split] += 1
            plans.append(plan_shard(stem, split, bundle))
            offset = 0
            for clip in bundle:
                placed.append(dataclasses.replace(clip, split=split, shard=stem, offset=offset))
                offset += clip.size_bytes or 0
    for clip in rows:
        if clip.status != "kept":
            side = sides.get(clip.recording, "")
            placed.append(_unplaced(clip, side))
    clips = sorted([*before, *placed], key=lambda clip: (clip.uri, clip.start_s, clip.end_s, clip.clip_id))
    return Decision(clips, plans)


def _unplaced(clip: Clip, split: str) -> Clip:
    return dataclasses.replace(clip, split=split, shard="", offset=None, size_bytes=None, members_sha256="")


def _without_duplicates(
    rows: Sequence[Clip], videos: Mapping[str, Video], config: DataConfig, before: Sequence[Clip]
) -> list[Clip]:
    """The rows, near-duplicates filtered: of several the largest picture stays, and what is in a shard."""
    if config.filters.max_distance is None:
        return list(rows)

    def area(clip: Clip) -> int:
        video = videos.get(clip.video_id)
        return video.width * video.height if video else 0

    standing = [clip for clip in before if clip.status == "kept"]
    new = sorted(
        (clip for clip in in_shard_order(rows) if clip.status == "kept"), key=lambda clip: -area(clip)
    )
    ordered = [*standing, *new]
    twins = near_duplicates([clip.phash for clip in ordered], config.filters.max_distance)
    left_out = {}
    for number in range(len(standing), len(ordered)):
        if twins[number] >= 0:
            twin = ordered[twins[number]]
            reason = f"duplicate: it looks like {twin.uri} at {twin.start_s:g} s"
            clip = ordered[number]
            left_out[clip.clip_id] = dataclasses.replace(
                clip, status="filtered", reason=reason, duplicate_of=twin.clip_id
            )
    return [left_out.get(clip.clip_id, clip) if clip.status == "kept" else clip for clip in rows]


def _bundles(clips: Sequence[Clip], target_bytes: int) -> Iterator[list[Clip]]:
    bundle: list[Clip] = []
    filled = 0
    for clip in clips:
        size = clip.size_bytes or 0
        if bundle and filled + size + len(tar_end(filled + size)) > target_bytes:
            yield bundle
            bundle, filled = [], 0
        bundle.append(clip)
        filled += size
    if bundle:
        yield bundle


def plan_shard(stem: str, split: str, clips: Sequence[Clip]) -> ShardPlan:
    """The plan of a shard from the rows of its clips, in their order; each row says where its part has it."""
    pieces = tuple(
        Piece(c.clip_id, c.shard, c.offset or 0, c.size_bytes or 0, c.members_sha256) for c in clips
    )
    lines = [f"{piece.clip_id} {piece.size} {piece.members_sha256}" for piece in pieces]
    return ShardPlan(stem, split, pieces, stable_id(FORMAT_VERSION, stem, *lines))


def build_shard(plan: ShardPlan, out: str) -> Iterator[tuple[str, int] | ShardDone]:
    """Copy the clips of a shard out of their parts, read the tar back, publish it with its records.

    Yields: ("packed", bytes) for each clip, then the done record.
    Raises: DataError when a part is missing or damaged, or the disk is full.
    """
    storage = Storage(out)
    with storage.writing(tar_name(plan.stem)) as path:
        with open(path, "wb") as tar:
            for part, group in groupby(plan.pieces, key=lambda piece: piece.part):
                for run in _runs(list(group)):
                    data = storage.read(part_tar(part), run[0].offset, sum(piece.size for piece in run))
                    _write(tar, data, plan.stem)
                    yield from (("packed", piece.size) for piece in run)
            _write(tar, tar_end(tar.tell()), plan.stem)
            tar.flush()
        found = _read_back(path, plan)
        written = hash_file(path)
    yield publish_records(storage, plan.stem, plan.split, written, found, plan.fingerprint)


def _write(tar: IO[bytes], data: bytes, stem: str) -> None:
    try:
        tar.write(data)
    except OSError as error:
        raise DataError(f"shard {stem} could not be written to {tar.name}: {why(error)}") from error


def _read_back(path: Path, plan: ShardPlan) -> list[Member]:
    """The members of the tar just written. Raises: DataError when they are not those that were encoded."""
    try:
        found = read_members(path)
    except (tarfile.TarError, ValueError):  # ValueError: a name without a suffix
        found = []
    of_clip: dict[str, list[Member]] = {}
    for member in found:
        of_clip.setdefault(member.key, []).append(member)
    if [(key, members_digest(members)) for key, members in of_clip.items()] != [
        (piece.clip_id, piece.members_sha256) for piece in plan.pieces
    ]:
        parts = ", ".join(sorted({part_tar(piece.part) for piece in plan.pieces}))
        raise DataError(
            f"shard {plan.stem} does not read back as its clips were encoded: one of its parts or the disk "
            f"is damaged; remove {parts}, and the same command makes them again"
        )
    return found


def _runs(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Neighbours that lie one after the other, together."""
    run: list[Piece] = []
    filled = 0
    for piece in pieces:
        if run and (run[-1].offset + run[-1].size != piece.offset or filled + piece.size > RUN_BYTES):
            yield run
            run, filled = [], 0
        run.append(piece)
        filled += piece.size
    if run:
        yield run
