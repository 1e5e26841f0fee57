"""What a clip costs the driver of a job, beside its own decoding: rows alone, rendered, up to a million.

python -m benchmarks.shard_rows prepare|measure NUM FOLDER     one size; `benchmarks.shard` runs all
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from data_pipeline import finish as finishing
from data_pipeline.clips import stable_id
from data_pipeline.config import CutConfig, DataConfig, EncodeConfig, FilterConfig
from data_pipeline.dataset import cut_all, plan_all, sweep
from data_pipeline.format import (
    MANIFEST_FILE,
    SHARDS_FOLDER,
    ShardDone,
    done_name,
    index_name,
    tar_name,
    to_json,
)
from data_pipeline.index import Index
from data_pipeline.manifest import Clip, Video, read_parquet, to_parquet
from data_pipeline.pack import decide
from data_pipeline.parts import PARTS_FOLDER, finished_parts, part_rows, part_tar, read_rows
from data_pipeline.scores import Scores
from data_pipeline.sources import Listing, SourceFile
from data_pipeline.storage import Storage

SIZES = (125_000, 250_000, 500_000, 1_000_000)
CLIPS_PER_VIDEO = 20
CLIP_BYTES = 121_856
TWINS = 0.02  # share of clips that look like another one
STAGES = ("plan", "read rows of parts", "decide", "commit")


def config_of(out: Path) -> DataConfig:
    return DataConfig(
        name="bench",
        out=str(out),
        sources=("rendered",),
        cut=CutConfig(length_s=4.0, stride_s=4.0),
        encode=EncodeConfig(fps=16.0),
        filters=FilterConfig(max_distance=4),
    )


def index_of(num_clips: int) -> Index:
    """An index of videos that are not there."""
    files, videos = [], []
    for number in range(num_clips // CLIPS_PER_VIDEO):
        name = f"batch-{number // 1000:04d}/video-{number:07d}.mp4"
        file = SourceFile(name, f"/videos/{name}", f"/videos/{name}", 10_000_000, 1)
        files.append(file)
        video = Video(stable_id("video", name), file.uri, name, "usable", content_sha256=f"{number:064x}")
        video = dataclasses.replace(video, container="mov", codec="h264", pixel_format="yuv420p", width=1280)
        facts: dict[str, Any] = {"height": 720, "average_fps": 30.0, "nominal_fps": 30.0, "is_vfr": False}
        length_s = 4.0 * CLIPS_PER_VIDEO + number % 4
        videos.append(
            dataclasses.replace(
                video, **facts, duration_s=length_s, num_frames=int(30 * length_s), listing=name
            )
        )
    return Index(tuple(videos), Listing.of(files, ()), 0)


def prepare(num_clips: int, folder: Path) -> None:
    """The parts' records, as if all clips had been encoded."""
    config, found = config_of(folder), index_of(num_clips)
    sources = found.sources()
    generator = np.random.default_rng(num_clips)
    hashes = generator.integers(0, 256, (num_clips, 24), np.uint8)
    twins = generator.choice(num_clips, int(TWINS * num_clips), replace=False)
    hashes[twins] = hashes[generator.integers(0, num_clips, len(twins))]
    hashes[twins, generator.integers(0, 24, len(twins))] ^= 1 << 3
    (folder / PARTS_FOLDER).mkdir(parents=True)
    number = 0
    for plan in plan_all(config, cut_all(config, sources), sources):
        rows, offset = [], 0
        for clip in plan.clips:
            scores = Scores(0.4, 0.0, 0.0, 0.03, hashes[number].tobytes().hex())
            size = CLIP_BYTES + 512 * (number % 400)
            place: dict[str, Any] = {"shard": plan.stem, "offset": offset, "size_bytes": size}
            place["members_sha256"] = f"{number:064x}"
            rows.append(dataclasses.replace(clip, **place, **dataclasses.asdict(scores)))
            offset, number = offset + size, number + 1
        (folder / part_rows(plan.stem)).write_bytes(to_parquet(rows, Clip))
        with open(folder / part_tar(plan.stem), "wb") as tar:
            tar.truncate(offset + 10240)


def measure(num_clips: int, folder: Path) -> dict[str, float]:
    """Seconds of each stage of the driver, and the most memory it took."""
    seconds: dict[str, float] = {}
    config, found = config_of(folder), index_of(num_clips)
    storage = Storage(config.out)
    start_bytes = _peak_bytes()

    def lap(stage: str, start: float) -> None:
        seconds[stage] = time.perf_counter() - start
        seconds[f"{stage} MB"] = (_peak_bytes() - start_bytes) / 1e6

    start = time.perf_counter()
    sources = found.sources()
    cut = cut_all(config, sources)
    plans = plan_all(config, cut, sources)
    lap("plan", start)

    start = time.perf_counter()
    done = finished_parts(storage, plans)
    assert len(done) == len(plans)
    rows = [row for part in read_rows(storage, done).values() for row in part]
    lap("read rows of parts", start)

    start = time.perf_counter()
    decision = decide(rows, {v.video_id: v for v in found.usable}, config, found.splits())
    lap("decide", start)

    start = time.perf_counter()
    clips = decision.clips
    storage.publish(MANIFEST_FILE, to_parquet(clips, Clip, finishing.notes_of(config, found)))
    sweep(storage, decision.shards)
    seconds["commit"] = time.perf_counter() - start
    (folder / SHARDS_FOLDER).mkdir(exist_ok=True)
    for plan in decision.shards:  # as if they had been packed
        sizes = sum(piece.size for piece in plan.pieces)
        record = ShardDone(
            plan.stem, plan.split, len(plan.pieces), sizes, "0" * 64, "0" * 64, plan.fingerprint
        )
        (folder / done_name(plan.stem)).write_bytes(to_json(record))
        for path in (tar_name(plan.stem), index_name(plan.stem)):
            (folder / path).touch()
    cards: list[float] = []
    publish_card = finishing.publish_card

    def timed_card(*rest: Any) -> None:
        start = time.perf_counter()
        publish_card(*rest)
        cards.append(time.perf_counter() - start)

    before, start = seconds["commit"], time.perf_counter()
    with patch.object(finishing, "publish_card", timed_card):
        finishing.finish(config, found, clips, decision.shards, 0)
    lap("commit", start - before)
    seconds["of it the data card"] = sum(cards)

    del rows, plans, cut, decision, clips
    start = time.perf_counter()
    read_parquet(storage, MANIFEST_FILE, Clip)
    lap("read the manifest again", start)
    return seconds


def _peak_bytes() -> int:
    """By /proc: getrusage tells at least what the process that started this one took."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure_rows(scratch: Path, row: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a stage and size, in processes of their own; then how each stage grows."""
    found: dict[int, dict[str, float]] = {}
    made = [_start("prepare", size, scratch) for size in SIZES]
    codes = [process.wait() for process in made]
    if any(codes):
        raise SystemExit("the rendered rows could not be written")
    for size in SIZES:
        process = _start("measure", size, scratch)
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the driver could not be measured with {size:,} clips")
        found[size] = seconds = json.loads(output)
        case = f"driver, {size:,} clips"
        for stage in (*STAGES, "of it the data card", "read the manifest again"):
            yield row(case, stage, "µs/clip", [1e6 * seconds[stage] / size])
        yield row(case, "all", "µs/clip", [1e6 * sum(seconds[stage] for stage in STAGES) / size])
        yield row(case, "most memory", "MB", [seconds["commit MB"]])
    for stage in (*STAGES, "all"):
        times = [
            sum(found[size][each] for each in (STAGES if stage == "all" else (stage,))) for size in SIZES
        ]
        yield row("driver, growth", stage, "exponent", [_exponent(times)])
    yield row(
        "driver, growth", "most memory", "exponent", [_exponent([found[s]["commit MB"] for s in SIZES])]
    )


def _start(step: str, size: int, scratch: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.shard_rows", step, str(size), str(scratch / f"rows-{size}")]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


def _exponent(values: list[float]) -> float:
    """b of the least squares fit of a * size ** b."""
    return float(np.polyfit([math.log(size) for size in SIZES], [math.log(value) for value in values], 1)[0])


if __name__ == "__main__":
    step, size, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if step == "prepare":
        gc.disable()
        prepare(size, out)
    else:
        print(json.dumps(measure(size, out)))
