"""A data set against its own records: shards, indexes, hashes, counts, stray files, and every frame."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.decode import decode_jpegs, open_video
from data_pipeline.errors import DataError
from data_pipeline.fetch import Scratch
from data_pipeline.format import (
    ACTIONS,
    DATASET_FILE,
    MANIFEST_FILE,
    META,
    SHARDS_FOLDER,
    STATE,
    VIDEO,
    ClipMeta,
    DatasetInfo,
    Sample,
    Shard,
    ShardDone,
    dataset_fingerprint,
    done_name,
    frame_suffix,
    index_name,
    read_info,
    read_shards,
    sha256,
    tar_name,
)
from data_pipeline.manifest import Clip, read_parquet
from data_pipeline.progress import Progress
from data_pipeline.shards import hash_file, members_digest, read_members, samples_in_tar
from data_pipeline.storage import Storage

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
    """Check every shard of dataset.json against its done record and index, and the manifest against both.

    deep: decode every clip too.
    Raises: DataError when there is no finished data set to check; damage is reported, not raised.
    """
    storage = Storage(dataset)
    info = read_info(storage)
    problems: list[str] = []
    num_samples = num_frames = num_bytes = 0
    for number, done in enumerate(info.shards):
        if progress:
            progress("verify", number, len(info.shards), done.stem)
        samples, frames, found = _check_shard(storage, done, deep)
        problems += found
        num_samples += len(samples)
        num_frames += frames
        num_bytes += done.tar_bytes if samples else 0
    problems += _check_counts(info)
    problems += _check_manifest(storage, info)
    problems += _strays(storage, {done.stem for done in info.shards})
    if progress:
        progress("verify", len(info.shards), len(info.shards), "")
    return Report(info, tuple(problems), num_samples, num_bytes, num_frames)


@contextmanager
def _local_tar(storage: Storage, stem: str) -> Iterator[Path]:
    """The shard's tar as a file of this machine. Raises: DataError when it is missing."""
    with Scratch() as scratch:
        path = scratch.local(storage.address(tar_name(stem)))
        if not path.is_file():
            raise DataError(f"{path} could not be read: it does not exist")
        yield path


def _check_shard(storage: Storage, done: ShardDone, deep: bool) -> tuple[tuple[Sample, ...], int, list[str]]:
    """One shard: done record, index, then the tar's bytes and members against both; frames decoded."""
    stem, num_frames = done.stem, 0
    try:
        if ShardDone.from_json(storage.read(done_name(stem))) != done:
            return (), 0, [f"{done_name(stem)} is not the record that {DATASET_FILE} holds of it"]
        (shard,) = read_shards(storage, [done])
        with _local_tar(storage, stem) as tar:
            problems = _check_tar(tar, shard)
            if len(shard.samples) != done.num_samples:
                problems.append(
                    f"{index_name(stem)} lists {len(shard.samples)} samples of {done.num_samples}"
                )
            if deep and not problems:
                num_frames, problems = _decode_all(tar, shard.samples)
    except DataError as error:
        return (), 0, [str(error)]
    return shard.samples, num_frames, problems


def _check_tar(tar: Path, shard: Shard) -> list[str]:
    """The tar against its done record, and its members against the index; damage is traced to members."""
    stem = shard.done.stem
    indexed = [member for sample in shard.samples for member in sample.members.values()]
    try:
        size, digest = hash_file(tar)
    except OSError as error:
        return [f"{tar_name(stem)} cannot be read: {error.strerror or error}"]
    if (size, digest) == (shard.done.tar_bytes, shard.done.tar_sha256):
        if read_members(tar) == indexed:
            return []
        return [f"{index_name(stem)} does not list what {tar_name(stem)} holds"]
    problems = [f"{tar_name(stem)} is not the tar that its done record names ({size} bytes, another sha256)"]
    with open(tar, "rb") as file:
        for member in indexed:
            file.seek(member.offset)
            if sha256(file.read(member.size)) != member.sha256:
                name = f"{member.key}.{member.suffix}"
                problems.append(f"{tar_name(stem)}: {name} at byte {member.offset} is damaged")
    return problems


def _check_counts(info: DatasetInfo) -> list[str]:
    """dataset.json against itself."""
    problems = []
    if dataset_fingerprint(info.shards) != info.fingerprint:
        problems.append(f"{DATASET_FILE}: its shards have not the fingerprint {info.fingerprint}")
    for split in info.num_shards:
        shards = info.shards_of(split)
        for what, found, wanted in (
            ("shards", len(shards), info.num_shards[split]),
            ("clips", sum(done.num_samples for done in shards), info.num_clips.get(split, 0)),
        ):
            if found != wanted:
                problems.append(f"{DATASET_FILE} counts {wanted} {split} {what} and lists {found}")
    return problems


def _check_manifest(storage: Storage, info: DatasetInfo) -> list[str]:
    """The manifest against dataset.json, and each kept clip against the shard that it names."""
    try:
        if sha256(storage.read(MANIFEST_FILE)) != info.manifest_sha256:
            return [
                f"{MANIFEST_FILE} is not the one that {DATASET_FILE} names: it was changed, or a --redrive "
                f"was cut short, and the same command again finishes it"
            ]
        rows, _ = read_parquet(storage, MANIFEST_FILE, Clip)
    except DataError as error:
        return [str(error)]
    places: dict[str, set[tuple[str, int | None, int | None, str]]] = defaultdict(set)
    for clip in rows:
        if clip.status == "kept":
            places[clip.shard].add((clip.clip_id, clip.offset, clip.size_bytes, clip.members_sha256))
    problems = []
    for done in info.shards:
        try:
            (shard,) = read_shards(storage, [done])
        except DataError:  # told already
            places.pop(done.stem, None)
            continue
        there = set()
        for sample in shard.samples:
            members = list(sample.members.values())
            there.add((sample.key, *samples_in_tar(members)[sample.key], members_digest(members)))
        wrong = places.pop(done.stem, set()) ^ there
        if wrong:
            names = ", ".join(sorted({clip_id for clip_id, *_ in wrong})[:3])
            problems.append(f"{MANIFEST_FILE} and shard {done.stem} do not agree on {names}")
    return problems + [
        f"{MANIFEST_FILE} names shard {stem}, which {DATASET_FILE} does not" for stem in places
    ]


def _strays(storage: Storage, stems: set[str]) -> list[str]:
    """Files in the shards folder that no shard of dataset.json owns."""
    strays = []
    for name in storage.names(SHARDS_FOLDER):
        match = SHARD_FILE.match(name)
        if match is None or name.split(".", 1)[0] not in stems:
            strays.append(
                f"{SHARDS_FOLDER}/{name} belongs to no finished shard; readers pass it by: remove it"
            )
    return strays


def _decode_all(path: Path, samples: tuple[Sample, ...]) -> tuple[int, list[str]]:
    """Read and decode each member of the tar at `path`: (frames decoded, problems)."""
    frames, problems, here = 0, [], Storage(path.parent)
    for sample in samples:
        tar = tar_name(sample.stem)
        parts = {s: here.read(path.name, m.offset, m.size) for s, m in sample.members.items()}
        try:
            meta = ClipMeta.from_json(parts[META])
            shape = _decode(parts, meta)
            if shape != (meta.num_frames, meta.height, meta.width, 3):
                problems.append(f"{tar}: {sample.key} decodes to {shape}, unlike its {META}")
            frames += shape[0]
            for suffix, names in ((STATE, meta.state_names), (ACTIONS, meta.action_names)):
                if suffix in parts:
                    size = np.load(io.BytesIO(parts[suffix]), allow_pickle=False).shape
                    if size != (meta.num_frames, len(names)):
                        problems.append(f"{tar}: {sample.key}.{suffix} has shape {size}, unlike its {META}")
        except (DataError, KeyError, ValueError, TypeError, json.JSONDecodeError) as error:
            problems.append(f"{tar}: {sample.key} cannot be read: {error}")
    return frames, problems


def _decode(parts: dict[str, bytes], meta: ClipMeta) -> tuple[int, ...]:
    """The shape of a clip's frames, all of them decoded."""
    if meta.encoding == "jpeg":
        return decode_jpegs([parts[frame_suffix(number)] for number in range(meta.num_frames)]).shape
    with open_video(parts[VIDEO], "pyav") as video:
        return video.frames(range(len(video.timestamps_s))).shape
