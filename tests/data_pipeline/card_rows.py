"""Videos and clips to make a data card of, and what the pipeline would write of them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.format import DatasetInfo, ShardDone
from data_pipeline.manifest import Clip, Video


def config(**changes: Any) -> DataConfig:
    plain: dict[str, Any] = {
        "name": "card",
        "out": "/out",
        "sources": ["/in"],
        "filters": {"min_motion": 0.02, "max_distance": 4},
    }
    return DataConfig.model_validate(plain | changes)


def info(clips: Sequence[Clip], **changes: Any) -> DatasetInfo:
    """What the pipeline would write of these clips."""
    status = Counter(clip.status for clip in clips)
    num = {s: sum(c.status == "kept" and c.split == s for c in clips) for s in ("train", "eval")}
    shards = tuple(ShardDone(f"{s}-000000", s, n, 1000 * n, "a", "b") for s, n in num.items() if n)
    found = DatasetInfo(
        format_version=2,
        name="card",
        fingerprint="0123456789abcdef",
        revision=0,
        num_videos=len({clip.video_id for clip in clips if clip.status == "kept"}),
        num_clips=num,
        num_shards={s: sum(done.split == s for done in shards) for s in num},
        num_filtered=status["filtered"],
        num_failed=status["failed"],
        total_bytes=sum(done.tar_bytes for done in shards),
        config_fingerprint="c" * 16,
        source_fingerprint="d" * 16,
        manifest_sha256="e" * 64,
        versions={"av": "18"},
        state_names=(),
        action_names=(),
        shards=shards,
    )
    return dataclasses.replace(found, **changes)


def video(number: int, folder: str = "a", **changes: Any) -> Video:
    name = f"{folder}/{number:04d}.mp4"
    known = Video(f"v{number:019d}", f"/in/{name}", name, "usable", size_bytes=10_000, width=640, height=480)
    facts: dict[str, Any] = {"codec": "h264", "container": "mov", "average_fps": 30.0, "is_vfr": False}
    return dataclasses.replace(known, **({"duration_s": 10.0 + number} | facts | changes))


def clip(source: Video, number: int, **changes: Any) -> Clip:
    known = Clip(
        clip_id=f"{source.video_id[-9:]}{number:011d}",
        video_id=source.video_id,
        uri=source.uri,
        start_s=2.0 * number,
        end_s=2.0 * number + 2,
        status="kept",
        split="train",
        num_frames=16,
        fps=8.0,
        width=340,
        height=256,
        brightness=0.5,
        black=0.0,
        frozen=0.0,
        motion=0.1,
        phash=f"{number:048x}",
    )
    return dataclasses.replace(known, **changes)


def some_rows(num_videos: int = 60, seed: int = 0) -> tuple[list[Video], list[Clip]]:
    """Videos of three folders with clips of every fate, drawn at random."""
    rng = random.Random(seed)
    videos = [
        video(k, rng.choice("aabc"), average_fps=rng.choice((24.0, 30.0, 6.0))) for k in range(num_videos)
    ]
    clips = []
    for source in videos:
        for number in range(rng.randrange(1, 9)):
            split = "eval" if source.video_id.endswith("3") else "train"
            made = clip(source, number, split=split, motion=rng.random(), brightness=rng.random())
            made = dataclasses.replace(made, label=rng.choice((None, "jump", "run")))
            fate = rng.random()
            if fate < 0.1:
                made = dataclasses.replace(made, status="filtered", reason="black: 80 % of it", black=0.8)
            elif fate < 0.2:
                made = dataclasses.replace(made, status="filtered", reason="motion: so little", motion=0.01)
            elif fate < 0.3 and clips:
                twin = clips[rng.randrange(len(clips))].clip_id
                made = dataclasses.replace(
                    made, status="filtered", reason="duplicate: of another", duplicate_of=twin
                )
            elif fate < 0.4:
                bare = {"brightness": None, "black": None, "frozen": None, "motion": None, "phash": ""}
                reason = f"the frame at {rng.random():.2f} s is damaged"
                made = dataclasses.replace(
                    made, status="failed", reason=reason, error_class="DataError", **bare
                )
            clips.append(made)
    broken = [
        video(k, status="failed", reason="it is no video", error_class="DataError") for k in range(900, 907)
    ]
    passed = [Video(f"i{k}", f"/in/{k}.txt", "", "ignored", "not a video's ending") for k in range(11)]
    return [*videos, *broken, *passed], clips
