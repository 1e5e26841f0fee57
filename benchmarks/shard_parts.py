"""Where the time of a clip goes: the stages of the pipeline in this process, one after the other."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from data_pipeline import encode, shards
from data_pipeline.clips import plan_parts
from data_pipeline.config import DataConfig
from data_pipeline.dataset import cut_all
from data_pipeline.decode.with_pyav import PyAvDecoder
from data_pipeline.encode import encoder_versions
from data_pipeline.index import Index
from data_pipeline.pack import build_shard, decide
from data_pipeline.sources import list_sources
from data_pipeline.stages import build_part
from data_pipeline.stages import encode as stage
from data_pipeline.stages import part as part_stage
from data_pipeline.stages.inspect import InspectTask, inspect_file


class _Clock:
    """CPU seconds by part; what a part calls of another part is the other's alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[float] = []

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        start = time.process_time()
        self._open.append(0.0)
        try:
            yield
        finally:
            spent = time.process_time() - start
            self.seconds[part] += spent - self._open.pop()
            if self._open:
                self._open[-1] += spent

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*rest: Any, **named: Any) -> Any:
            with self.within(part):
                return call(*rest, **named)

        return timed


PARTS: tuple[tuple[str, Any, str], ...] = (
    ("decode and scale", PyAvDecoder, "frames"),
    ("scores", stage, "score_frames"),
    ("bars", stage, "find_bars"),
    ("x264", stage, "encode_frames"),
    ("check", stage, "check_encoded"),
    ("tar", shards.ShardFile, "add"),
    ("tar", shards.ShardFile, "finish"),
    ("rows of parts", part_stage, "publish_rows"),
)


def profile(config: DataConfig, row: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """CPU milliseconds a clip of each part, over the videos of a config, without Ray and pipes."""
    clock = _Clock()
    with contextlib.ExitStack() as stack:
        for part, owner, name in PARTS:
            stack.enter_context(patch.object(owner, name, clock.around(part, getattr(owner, name))))
        stack.enter_context(patch.object(encode, "Scaler", _timed_scaler(clock)))
        with clock.within("other"):
            num_clips = _run(config, clock, stack)
    order = ("inspect", *dict.fromkeys(part for part, _, _ in PARTS), "RGB to YUV", "pack", "other")
    for part in order:
        yield row(f"CPU by part, {num_clips} clips", part, "ms/clip", [1e3 * clock.seconds[part] / num_clips])
    total = sum(clock.seconds.values())
    yield row(f"CPU by part, {num_clips} clips", "all", "ms/clip", [1e3 * total / num_clips])


def _timed_scaler(clock: _Clock) -> type:
    class Timed(encode.Scaler):
        def scale(self, frame: Any, pixel_format: str) -> Any:
            with clock.within("RGB to YUV"):
                return super().scale(frame, pixel_format)

    return Timed


def _run(config: DataConfig, clock: _Clock, stack: contextlib.ExitStack) -> int:
    listing = list_sources(config.sources)
    with clock.within("inspect"):
        videos = [[*inspect_file(InspectTask(f, f.address, (), None, None))][-1] for f in listing.files]
    found = Index(tuple(video for video in videos if video), listing, len(videos))
    sources = found.sources()
    clips = [clip for clip in cut_all(config, sources) if clip.status == "kept"]
    plans = plan_parts(clips, {v.video_id: v for v in found.videos}, config, encoder_versions())

    def in_process(task: stage.EncodeTask, clips: Any, limits: Any) -> Iterator[Any]:
        return (item for item in stage.encode_clips(task, clips) if item is not None)

    stack.enter_context(patch.object(part_stage, "encode_safely", in_process))
    rows = []
    for plan in plans:
        *_, last = build_part(plan, sources, config, str(Path(config.out).absolute()))
        assert isinstance(last, list)
        rows += last
    with clock.within("pack"):
        decision = decide(rows, {v.video_id: v for v in found.videos}, config, {})
        for shard in decision.shards:
            for _ in build_shard(shard, config.out):
                pass
    return len(clips)
