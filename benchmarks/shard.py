"""How fast videos become shards, beside a loop of ffmpeg processes; what a million clips cost the driver.

python -m benchmarks.shard --videos FOLDER [--pairs N]     writes benchmarks/results/shard.json
python -m benchmarks.shard --videos FOLDER --only rows     prints what it measured, and writes nothing

The set: of FOLDER, each video of 480 to 1080 rows that ffmpeg decodes without a word, copied under other
names until each gives the same share of 200 clips. `ours` is the `foreframe shard` command from its start to
its end, two workers; the loop runs two ffmpeg processes at a time, a clip each, cut at the same times, to the
same size with the same x264 settings, as a person would who knew where the black bars are. Both read from a
warm page cache. They take turns, and which begins changes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measuring import Quiet, Row, publish, row, short, tell
from benchmarks.shard_parts import profile
from benchmarks.shard_rows import measure_rows
from benchmarks.videos import Source, copy_sources, find_sources, warm
from data_pipeline.config import CutConfig, DataConfig, EncodeConfig, FilterConfig, RayConfig, SplitConfig
from data_pipeline.dataset import shard
from data_pipeline.execute import cluster
from data_pipeline.format import MANIFEST_FILE
from data_pipeline.manifest import Clip, read_parquet
from data_pipeline.storage import Storage
from pretrain.data.reader import ClipReader

ROOT = Path(__file__).parents[1]
NUM_CLIPS = 200
WORKERS = 2
LENGTH_S, FPS = 4.0, 16.0
ENCODE = EncodeConfig(fps=FPS)  # and short side 256, GOP 16, crf 18, veryfast, as in configs/data/folder.yaml
KEEP_ALL = FilterConfig(max_black=None, max_frozen=None)

# `foreframe shard` with the seconds that Ray takes to start and stop, as its last line.
COMMAND = """
import sys, time, ray
from launch.cli import main
spent = 0.0
def timed(call):
    def around(*rest, **named):
        global spent
        start = time.perf_counter()
        try:
            return call(*rest, **named)
        finally:
            spent += time.perf_counter() - start
    return around
ray.init, ray.shutdown = timed(ray.init), timed(ray.shutdown)
try:
    main()
finally:
    print(f"ray {spent}")
"""


def config_of(videos: Path, out: Path, **changes: Any) -> DataConfig:
    return DataConfig(
        name="bench",
        out=str(out),
        sources=(str(videos),),
        cut=CutConfig(length_s=LENGTH_S, stride_s=LENGTH_S),
        ray=RayConfig(workers=WORKERS),
        **{"encode": ENCODE, "filters": KEEP_ALL, **changes},
    )


def clips_of(config: DataConfig) -> list[Clip]:
    clips, _ = read_parquet(Storage(config.out), MANIFEST_FILE, Clip)
    if any(clip.status != "kept" for clip in clips):
        raise SystemExit(f"a clip of {config.out} was not kept; both sides must do the same work")
    return clips


def run_ours(config: DataConfig) -> tuple[float, float]:
    """Seconds of the whole command, and of those what Ray took to start and stop."""
    settings = Path(f"{config.out}.yaml")
    settings.write_text(config.model_dump_json())  # JSON is YAML
    shutil.rmtree(config.out, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "shard", str(settings)], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"foreframe shard failed:\n{done.stdout}\n{done.stderr}")
    return seconds, float(done.stdout.rsplit("ray ", 1)[1])


def run_ffmpeg(clips: Sequence[Clip], videos: Path, out: Path) -> float:
    """Seconds of the loop over those clips: the same times, crops and sizes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()

    def make(clip: Clip) -> None:
        crop = "crop={2}:{3}:{0}:{1},".format(*clip.crop) if clip.crop else ""
        shape = f"fps={clip.fps:g},{crop}scale={clip.width}:{clip.height}:flags=area"
        command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-ss", f"{clip.start_s:g}"]
        command += ["-i", str(videos / Path(clip.uri).name), "-t", f"{LENGTH_S:g}", "-an", "-vf", shape]
        command += ["-c:v", "libx264", "-preset", ENCODE.preset, "-crf", str(ENCODE.crf)]
        command += ["-g", str(ENCODE.gop), "-bf", "0", "-sc_threshold", "0", "-threads", "1"]
        command += ["-x264-params", "mbtree=0", "-pix_fmt", "yuv420p", str(out / f"{clip.clip_id}.mp4")]
        subprocess.run(command, check=True)

    start = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(make, clips))
    return time.perf_counter() - start


def measure_pipeline(sources: Sequence[Source], scratch: Path, pairs: int, quiet: Quiet) -> Iterator[Row]:
    """The whole command against the loop, with black bars left and cut off."""
    videos = scratch / "videos"
    copy_sources(sources, videos)
    cases = {
        "bars left as they are": KEEP_ALL.model_copy(update={"crop_letterbox": False}),
        "bars cut off": KEEP_ALL,
    }
    ours: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    theirs: dict[str, list[float]] = {case: [] for case in cases}
    clips: dict[str, list[Clip]] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for pair, (case, filters) in itertools.product(range(pairs), cases.items()):
        config = config_of(videos, scratch / "ours", filters=filters)

        def ours_once(config: DataConfig = config, case: str = case) -> None:
            ours[case].append(run_ours(config))

        def theirs_once(case: str = case) -> None:
            theirs[case].append(run_ffmpeg(clips[case], videos, scratch / "ffmpeg"))

        for once in (ours_once, theirs_once) if pair % 2 == 0 else (theirs_once, ours_once):
            warm(videos)
            quiet.wait()
            once()
            clips.setdefault(
                case, clips_of(config)
            )  # of the first turn, ours: the loop is told where the bars are
        sizes[case] = (
            statistics.mean(clip.size_bytes or 0 for clip in clips_of(config)),
            statistics.mean(p.stat().st_size for p in (scratch / "ffmpeg").iterdir()),
        )
        tell(f"pair {pair + 1}, {case}: {ours[case][-1][0]:.1f} s, ffmpeg {theirs[case][-1]:.1f} s")
    name = "two ffmpeg processes at a time"
    for case in cases:
        n = len(clips[case])
        loop = [n / seconds for seconds in theirs[case]]
        yield row(
            f"{n} clips, {case}", "whole command", "clips/s", [n / s for s, _ in ours[case]], loop, name
        )
        yield row(
            f"{n} clips, {case}",
            "whole command without Ray's start and stop",
            "clips/s",
            [n / (s - ray) for s, ray in ours[case]],
            loop,
            name,
        )
        yield row(f"{n} clips, {case}", "Ray's start and stop", "s", [ray for _, ray in ours[case]])
        yield row(
            f"{n} clips, {case}", "size", "1/bytes", [1 / sizes[case][0]], [1 / sizes[case][1]], "its mp4"
        ) | {"unit": "bytes/clip", "ours": round(sizes[case][0]), "reference": round(sizes[case][1])}


def measure_encodings(sources: Sequence[Source], scratch: Path, pairs: int, quiet: Quiet) -> Iterator[Row]:
    """JPEG frames against mp4: to make, to keep, to read."""
    videos = scratch / "few"
    copy_sources(sources, videos, most=2)
    configs = {
        encoding: config_of(
            videos,
            scratch / encoding,
            encode=EncodeConfig(fps=FPS, encoding=encoding),
            split=SplitConfig(eval_fraction=0.0),
        )
        for encoding in ("jpeg", "mp4")
    }
    rates: dict[str, list[float]] = {encoding: [] for encoding in configs}
    reads: dict[str, list[float]] = {encoding: [] for encoding in configs}
    with cluster(RayConfig(workers=WORKERS)):
        for _ in range(pairs):
            for encoding, config in configs.items():
                shutil.rmtree(config.out, ignore_errors=True)
                warm(videos)
                quiet.wait()
                start = time.perf_counter()
                outcome = shard(config, lambda *_: None)
                rates[encoding].append(len(outcome.clips) / (time.perf_counter() - start))
    clips = {encoding: clips_of(config) for encoding, config in configs.items()}
    readers = {encoding: ClipReader(config.out, "train") for encoding, config in configs.items()}
    quiet.wait()
    for number in range(len(readers["mp4"])):
        for encoding, reader in readers.items():
            start = time.perf_counter()
            reader.read(number, frames=16, fps=FPS / 4)
            reads[encoding].append(time.perf_counter() - start)
    bytes_of = {key: statistics.mean(clip.size_bytes or 0 for clip in found) for key, found in clips.items()}
    case = f"jpeg for mp4, {len(clips['mp4'])} clips"
    yield row(case, "made", "clips/s", rates["jpeg"], rates["mp4"], "mp4")
    yield row(case, "size", "", [1 / bytes_of["jpeg"]], [1 / bytes_of["mp4"]], "mp4") | {
        "unit": "bytes/clip",
        "ours": round(bytes_of["jpeg"]),
        "reference": round(bytes_of["mp4"]),
    }
    yield _times(row(case, "read 16 of 64 frames", "ms", *_inverse(reads), "mp4"))


def _inverse(times_s: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    jpeg, mp4 = ([1e-3 / time_s for time_s in times_s[key]] for key in ("jpeg", "mp4"))
    return jpeg, mp4


def _times(found: Row) -> Row:
    """A row whose rates are told as times; the ratio stays that of the rates."""
    return found | {key: short(1 / found[key]) for key in ("ours", "reference")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write shard.json unless only a part was asked for."""
    parser = argparse.ArgumentParser(description="From videos to shards: speed.")
    parser.add_argument("--videos", type=Path, required=True, help="folder of real videos")
    parser.add_argument("--pairs", type=int, default=3, help="times that each side has its turn")
    parser.add_argument("--only", choices=("pipeline", "rows"), help="print one part, and write nothing")
    parser.add_argument("--wait", type=float, default=120.0, help="longest wait for a quiet machine, s")
    asked = parser.parse_args(arguments)
    quiet = Quiet(asked.wait)
    sources = find_sources(asked.videos, LENGTH_S, NUM_CLIPS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="be-shard-") as folder:
        scratch = Path(folder)
        parts: list[tuple[str, Callable[[], Iterator[Row]]]] = [
            ("pipeline", lambda: measure_pipeline(sources, scratch, asked.pairs, quiet)),
            ("pipeline", lambda: profile(config_of(scratch / "few", scratch / "profile"), row)),
            ("rows", lambda: measure_rows(scratch, row)),
        ]
        parts.insert(1, ("pipeline", lambda: measure_encodings(sources, scratch, asked.pairs, quiet)))
        for part, measure in parts:
            if asked.only in (None, part):
                for found in measure():
                    rows.append(found)
                    tell(json.dumps(found, ensure_ascii=False))
    config = {
        "videos": [str(source) for source in sources],
        "clips": f"{LENGTH_S:g} s at {FPS:g} fps, short side {ENCODE.short_side}, GOP {ENCODE.gop}, "
        f"crf {ENCODE.crf}, {ENCODE.preset}",
        "workers": WORKERS,
        "pairs": asked.pairs,
        "min_max": "of the ratio, pair by pair; of ours where there is no reference",
        "busy_with_other_work": quiet.loads,
    }
    ffmpeg = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split()[2]
    publish("shard", config, rows, {"ffmpeg": ffmpeg}, is_whole=asked.only is None)


if __name__ == "__main__":
    main()
