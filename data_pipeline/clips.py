"""Pure: from the facts of videos to clip spans, stable ids, splits, and the plan of shards.

Nothing here reads a file. The same videos and config give the same plan in whatever order they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.config import CutConfig, DataConfig
from data_pipeline.encode import encoded_size, estimate_bytes
from data_pipeline.format import FORMAT_VERSION, SPLITS, shard_stem
from data_pipeline.manifest import Clip, Video


def stable_id(*parts: object) -> str:
    """20 hex digits from the parts' text, the same on every machine and run."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:20]


def video_id(name: str, content_sha256: str) -> str:
    """Of a file, by its name relative to its source and what it holds: not where it lies, nor when."""
    return stable_id("video", name, content_sha256)


def clip_id(video: str, start_ms: int, end_ms: int) -> str:
    """Of a span of a video. Encoder settings are left out on purpose: labels, splits and results that
    name a clip stay true when the same span is encoded again at another size."""
    return stable_id("clip", video, start_ms, end_ms)


def windows(duration_s: float, cut: CutConfig, slack_s: float = 1e-3) -> list[tuple[int, int]]:
    """(start, end) in milliseconds of each whole window; `slack_s` forgives a header's rounding."""
    spans: list[tuple[int, int]] = []
    while True:
        start_s = len(spans) * cut.stride_s
        if start_s + cut.length_s > duration_s + slack_s:
            return spans
        spans.append((round(start_s * 1000), round((start_s + cut.length_s) * 1000)))


def cut_video(video: Video, config: DataConfig) -> list[Clip]:
    """The clips of a usable video; a video shorter than one clip gives a single filtered one."""
    slack_s = 0.5 / video.average_fps if video.average_fps else 1e-3
    spans = windows(video.duration_s, config.cut, slack_s)
    width, height = encoded_size(video.width, video.height, config.encode.short_side, video.pixel_aspect)
    if spans:
        return [
            Clip(
                clip_id=clip_id(video.video_id, start_ms, end_ms),
                video_id=video.video_id,
                uri=video.uri,
                start_s=start_ms / 1000,
                end_s=end_ms / 1000,
                status="kept",
                num_frames=config.num_frames(),
                fps=config.encode.fps,
                width=width,
                height=height,
            )
            for start_ms, end_ms in spans
        ]
    end_ms = round(video.duration_s * 1000)
    reason = f"too short: {video.duration_s:.2f} s, a clip is {config.cut.length_s:g} s"
    name = clip_id(video.video_id, 0, end_ms)
    return [Clip(name, video.video_id, video.uri, 0.0, end_ms / 1000, "filtered", reason)]


def assign_splits(num_clips: Mapping[str, int], eval_fraction: float) -> dict[str, str]:
    """Train or eval for each video, by a hash of its id: in a large set, a new video never moves another.

    num_clips: clips by video id. In a small set chance is bridled: a video that would bring the eval split
    past one and a half times its share of the clips stays in train. With two videos or more and a
    fraction above 0, neither split is left empty.
    """
    draws = {video: int(stable_id("split", video)[:13], 16) / 16**13 for video in num_clips}
    splits = dict.fromkeys(sorted(num_clips), "train")
    room = 1.5 * eval_fraction * sum(num_clips.values())
    for video in sorted(splits, key=lambda video: draws[video]):
        if draws[video] < eval_fraction and num_clips[video] <= room:
            splits[video] = "eval"
            room -= num_clips[video]
    if eval_fraction > 0 and len(splits) > 1:
        if "eval" not in splits.values():
            fair = eval_fraction * sum(num_clips.values())
            splits[min(splits, key=lambda video: (max(fair, num_clips[video]), draws[video]))] = "eval"
        if "train" not in splits.values():
            splits[max(splits, key=lambda video: draws[video])] = "train"
    return splits


@dataclass(frozen=True)
class ShardPlan:
    """One idempotent task: these clips, in this order, into this shard."""

    stem: str
    split: str
    clips: tuple[Clip, ...]
    fingerprint: str


def plan_shards(
    clips: Sequence[Clip], videos: Sequence[Video], config: DataConfig, versions: dict[str, str]
) -> list[ShardPlan]:
    """Pack the kept clips: videos shuffled by a hash of their id, their clips together and in time order.

    Whole videos are decoded once, and tasks read them in sequence; the reader shuffles samples itself.
    A long video spreads over several shards. Fingerprints cover whatever decides a shard's bytes.
    """
    sidecars = {video.video_id: video.sidecar_sha256 for video in videos}
    shape = config.fingerprint()
    plans: list[ShardPlan] = []
    for split in SPLITS:
        mine = [clip for clip in clips if clip.status == "kept" and clip.split == split]
        mine.sort(key=lambda clip: (stable_id("order", clip.video_id), clip.start_s))
        bundles: list[list[Clip]] = []
        filled = config.shards.target_bytes
        for clip in mine:
            size = estimate_bytes(clip.width, clip.height, clip.num_frames, config.encode.crf)
            if filled + size > config.shards.target_bytes:
                bundles.append([])
                filled = 0
            bundles[-1].append(clip)
            filled += size
        for number, bundle in enumerate(bundles):
            stem = shard_stem(split, number)
            parts = [f"{clip.clip_id} {sidecars[clip.video_id]} {clip.uri}" for clip in bundle]
            fingerprint = stable_id(FORMAT_VERSION, shape, stem, sorted(versions.items()), *parts)
            plans.append(ShardPlan(stem, split, tuple(bundle), fingerprint))
    return plans
