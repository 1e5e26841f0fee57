"""A data set against its own records: shards, indexes, hashes, counts, stray files, and every frame."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.decode import open_video
from data_pipeline.errors import DataError
from data_pipeline.format import (
    ACTIONS,
    MANIFEST_FILE,
    META,
    SHARDS_FOLDER,
    STATE,
    VIDEO,
    ClipMeta,
    DatasetInfo,
    Sample,
    ShardDone,
    dataset_fingerprint,
    done_name,
    finished_stems,
    index_name,
    read_info,
    read_shard,
    sha256,
    tar_name,
)
from data_pipeline.manifest import Clip, from_parquet
from data_pipeline.shards import read_members
from data_pipeline.storage import Storage

Progress = Callable[[str, int, int, str], None]
SHARD_FILE = re.compile(r"^(train|eval)-\d{6}\.(tar|index\.parquet|done\.json)$")


@dataclass(frozen=True)
class Report:
    """What `verify` found; whole when `problems` is empty."""

    info: DatasetInfo
    problems: tuple[str, ...]
    num_samples: int
    num_bytes: int
    num_frames_decoded: int


def verify(dataset: str, deep: bool = False, progress: Progress | None = None) -> Report:
    """Check every shard against its done record, index and the data set's own counts.

    deep: decode every clip and read every member too.
    Raises: DataError when there is no finished data set to check; damage is reported, not raised.
    """
    storage = Storage(dataset)
    info = read_info(storage)
    problems: list[str] = []
    stems = sorted(set(finished_stems(storage)) | _stems_of_manifest(storage, problems).keys())
    dones: list[ShardDone] = []
    samples_of: dict[str, int] = {}
    num_frames = 0
    for number, stem in enumerate(stems):
        if progress:
            progress("verify", number, len(stems), stem)
        done, samples, found = _check_shard(storage, stem)
        problems += found
        if done is not None:
            dones.append(done)
        samples_of[stem] = len(samples)
        if deep and not found:
            frames, found = _decode_all(storage, samples)
            num_frames += frames
            problems += found
    problems += _check_counts(storage, info, dones, samples_of)
    problems += _strays(storage, stems)
    if progress:
        progress("verify", len(stems), len(stems), "")
    total = sum(done.tar_bytes for done in dones)
    return Report(info, tuple(problems), sum(samples_of.values()), total, num_frames)


def _stems_of_manifest(storage: Storage, problems: list[str]) -> Counter[str]:
    """Kept clips by shard, as the manifest has them."""
    try:
        rows, _ = from_parquet(storage.read(MANIFEST_FILE), Clip)
    except DataError as error:
        problems.append(str(error))
        return Counter()
    return Counter(clip.shard for clip in rows if clip.status == "kept")


def _check_shard(storage: Storage, stem: str) -> tuple[ShardDone | None, tuple[Sample, ...], list[str]]:
    """One shard: done record, index, then the tar's bytes and members against both."""
    if not storage.exists(done_name(stem)):
        return None, (), [f"{done_name(stem)} is missing: shard {stem} does not count"]
    try:
        shard = read_shard(storage, stem)
        tar = storage.read(tar_name(stem))
    except DataError as error:
        return None, (), [str(error)]
    if sha256(tar) == shard.done.tar_sha256 and len(tar) == shard.done.tar_bytes:
        return shard.done, shard.samples, _check_members(tar, stem, shard.samples)
    problems = [
        f"{tar_name(stem)} is not the tar that its done record names: {len(tar)} bytes, sha256 differs"
    ]
    for sample in shard.samples:
        for suffix, member in sample.members.items():
            if sha256(tar[member.offset : member.offset + member.size]) != member.sha256:
                problems.append(f"{tar_name(stem)}: {sample.key}.{suffix} at byte {member.offset} is damaged")
    return shard.done, shard.samples, problems


def _check_members(tar: bytes, stem: str, samples: tuple[Sample, ...]) -> list[str]:
    """The tar's own members against the index."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(tar)
        file.flush()
        inside = read_members(Path(file.name))
    indexed = [member for sample in samples for member in sample.members.values()]
    return [] if inside == indexed else [f"{index_name(stem)} does not list what {tar_name(stem)} holds"]


def _check_counts(
    storage: Storage, info: DatasetInfo, dones: list[ShardDone], samples_of: dict[str, int]
) -> list[str]:
    problems = []
    if dataset_fingerprint(dones) != info.fingerprint:
        problems.append(
            f"the shards are not those of dataset.json: their fingerprint is not {info.fingerprint}"
        )
    for split, wanted in info.num_shards.items():
        found = sum(done.split == split for done in dones)
        if found != wanted:
            problems.append(f"{found} {split} shards of {wanted} that dataset.json counts")
    for split, wanted in info.num_clips.items():
        found = sum(done.num_samples for done in dones if done.split == split)
        if found != wanted:
            problems.append(f"{found} {split} clips of {wanted} that dataset.json counts")
    problems += [
        f"{index_name(done.stem)} lists {samples_of[done.stem]} samples of {done.num_samples}"
        for done in dones
        if samples_of[done.stem] != done.num_samples
    ]
    for stem, wanted in _stems_of_manifest(storage, []).items():
        if samples_of.get(stem, 0) != wanted:
            problems.append(
                f"{MANIFEST_FILE} has {wanted} clips in {stem}, which holds {samples_of.get(stem, 0)}"
            )
    return problems


def _strays(storage: Storage, stems: list[str]) -> list[str]:
    """Files in the shards folder that no finished shard owns."""
    strays = []
    for name in storage.names(SHARDS_FOLDER):
        match = SHARD_FILE.match(name)
        if match is None or name.split(".", 1)[0] not in stems:
            strays.append(
                f"{SHARDS_FOLDER}/{name} belongs to no finished shard; readers pass it by: remove it"
            )
    return strays


def _decode_all(storage: Storage, samples: tuple[Sample, ...]) -> tuple[int, list[str]]:
    """Read and decode each member: (frames decoded, problems)."""
    frames, problems = 0, []
    for sample in samples:
        tar = tar_name(sample.stem)
        parts = {s: storage.read(tar, m.offset, m.size) for s, m in sample.members.items()}
        try:
            meta = ClipMeta.from_json(parts[META])
            with open_video(parts[VIDEO], "pyav") as video:
                shape = video.frames(range(len(video.timestamps_s))).shape
            if shape != (meta.num_frames, meta.height, meta.width, 3):
                problems.append(f"{tar}: {sample.key}.{VIDEO} decodes to {shape}, unlike its {META}")
            frames += shape[0]
            for suffix, names in ((STATE, meta.state_names), (ACTIONS, meta.action_names)):
                if suffix in parts:
                    size = np.load(io.BytesIO(parts[suffix]), allow_pickle=False).shape
                    if size != (meta.num_frames, len(names)):
                        problems.append(f"{tar}: {sample.key}.{suffix} has shape {size}, unlike its {META}")
        except (DataError, KeyError, ValueError, TypeError, json.JSONDecodeError) as error:
            problems.append(f"{tar}: {sample.key} cannot be read: {error}")
    return frames, problems
