"""A data set of rendered clips for benchmarks and tests, in seconds: without Ray, videos or a network.

The clips are those of benchmarks/loader.py: stored at twice the rate at which a model sees them, in mp4 with
a key frame every 16 frames, or a JPEG a frame.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from data_pipeline.encode import encode_frames, encode_jpegs
from data_pipeline.format import (
    DATASET_FILE,
    FORMAT_VERSION,
    META,
    VIDEO,
    ClipMeta,
    DatasetInfo,
    dataset_fingerprint,
    frame_suffix,
    shard_stem,
    tar_name,
    to_json,
)
from data_pipeline.shards import ShardFile, hash_file, publish_records
from data_pipeline.storage import Storage
from data_pipeline.synthetic import TEXTURE_SCALE, generator, render_frames, render_texture, simulate

FPS = 8.0  # stored
GOP, CRF, QUALITY = 16, 18, 90
NUM_SHARDS = 4
SPLIT = "train"


Samples = Iterable[tuple[str, dict[str, bytes]]]


def key_of(number: int) -> str:
    """As clips have them."""
    return f"{number:020x}"


def write_shards(
    root: Path,
    shards: Mapping[str, Sequence[Samples]],
    *,
    state_names: tuple[str, ...] = (),
    action_names: tuple[str, ...] = (),
    clips_a_video: int = 1,
) -> None:
    """A finished data set of samples that are at hand: by split and shard, each (key, {suffix: bytes}).

    Raises: DataError when the disk is full.
    """
    storage, done, num_clips = Storage(root), [], dict.fromkeys(shards, 0)
    root.mkdir(parents=True, exist_ok=True)
    for split, each in shards.items():
        for count, samples in enumerate(each):
            stem, tar = shard_stem(split, count), root / "building.tar"
            with ShardFile(tar) as file:
                for key, members in samples:
                    file.add(key, members)
                    num_clips[split] += 1
                written = file.finish()
            storage.publish(tar_name(stem), tar)
            done.append(publish_records(storage, stem, split, hash_file(tar), written, "rendered"))
            tar.unlink()
    info = DatasetInfo(
        format_version=FORMAT_VERSION,
        name=root.name,
        fingerprint=dataset_fingerprint(done),
        revision=0,
        num_videos=sum(num_clips.values()) // clips_a_video,
        num_clips=num_clips,
        num_shards={split: len(each) for split, each in shards.items()},
        num_filtered=0,
        num_failed=0,
        total_bytes=sum(each.tar_bytes for each in done),
        config_fingerprint="rendered",
        source_fingerprint="rendered",
        manifest_sha256="",
        versions={},
        state_names=state_names,
        action_names=action_names,
        shards=tuple(done),
    )
    storage.publish(DATASET_FILE, to_json(info))


def members_of(number: int, frames: int, size: int, encoding: str) -> dict[str, bytes]:
    """One sample, {suffix: bytes}: `frames` frames of size × size pixels, a function of its number."""
    rng = generator(0, number)
    states, _ = simulate(rng, frames, FPS)
    pixels = render_frames(states, render_texture(rng, TEXTURE_SCALE * size), size)
    meta = ClipMeta(
        clip_id=key_of(number),
        video_id=key_of(number),
        name=f"rendered-{number}",
        start_s=0.0,
        end_s=frames / FPS,
        fps=FPS,
        num_frames=frames,
        width=size,
        height=size,
        label=None,
        state_names=(),
        action_names=(),
        encoding="jpeg" if encoding == "jpeg" else "mp4",
    )
    found = {META: to_json(meta)}
    if encoding == "jpeg":
        return found | {frame_suffix(k): jpeg for k, jpeg in enumerate(encode_jpegs(pixels, QUALITY))}
    return found | {VIDEO: encode_frames([pixels], size, size, FPS, gop=GOP, crf=CRF, preset="veryfast")}


def write_rendered(root: Path, clips: int, frames: int, size: int, encoding: str) -> str:
    """Shards of `clips` clips in an empty folder, rendered by all cores. Returns: its address.

    Raises: DataError when the disk is full.
    """
    make = functools.partial(members_of, frames=frames, size=size, encoding=encoding)
    workers = min(clips, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        samples = list(pool.map(make, range(clips), chunksize=-(-clips // (4 * workers))))
    shards = [range(first, clips, NUM_SHARDS) for first in range(NUM_SHARDS)]
    write_shards(root, {SPLIT: [[(key_of(number), samples[number]) for number in own] for own in shards]})
    return str(root)
