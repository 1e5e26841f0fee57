"""A data set against its own records: shards, indexes, hashes, counts, stray files, and every frame."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
    Shard,
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
from data_pipeline.manifest import Clip, read_parquet
from data_pipeline.progress import Progress
from data_pipeline.shards import hash_file, read_members
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
        rows, _ = read_parquet(storage, MANIFEST_FILE, Clip)
    except DataError as error:
        problems.append(str(error))
        return Counter()
    return Counter(clip.shard for clip in rows if clip.status == "kept")


@contextmanager
def _local_tar(storage: Storage, stem: str) -> Iterator[Path]:
    """The shard's tar as a file of this machine. Raises: DataError when it is missing."""
    path = storage.local_path(tar_name(stem))
    if path is not None:
        if not path.is_file():
            raise DataError(f"{path} could not be read: it does not exist")
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(storage.read(tar_name(stem)))
        file.flush()
        yield Path(file.name)


def _check_shard(storage: Storage, stem: str) -> tuple[ShardDone | None, tuple[Sample, ...], list[str]]:
    """One shard: done record, index, then the tar's bytes and members against both."""
    if not storage.exists(done_name(stem)):
        return None, (), [f"{done_name(stem)} is missing: shard {stem} does not count"]
    try:
        shard = read_shard(storage, stem)
        with _local_tar(storage, stem) as tar:
            problems = _check_tar(tar, shard)
    except DataError as error:
        return None, (), [str(error)]
    return shard.done, shard.samples, problems


def _check_tar(tar: Path, shard: Shard) -> list[str]:
    """The tar against its done record, and its members against the index; damage is traced to members."""
    stem = shard.done.stem
    indexed = [member for sample in shard.samples for member in sample.members.values()]
    size, digest = hash_file(tar)
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
