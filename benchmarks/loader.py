"""How fast clips become batches, beside the bare decode of the same clips and beside two peers.

python -m benchmarks.loader --videos FOLDER [--turns N]     writes benchmarks/results/loader.json
python -m benchmarks.loader --videos FOLDER --only index    prints what it measured, and writes nothing

Two worker processes each, 16 frames of 256² at 4 a second, from a warm page cache. The ceiling is two
processes that do nothing but decode the frames of those clips from memory, with the same decoder. Ours is
measured as the training process takes batches: ready floats, or (as for a GPU) crops of bytes in pinned
memory. The peers are a DataLoader that opens the original videos with decord, and webdataset on the same
tars, decoding with decord; both crop with our code, to bytes. Sides take turns, and which begins changes.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.loader_index import measure_index
from benchmarks.measuring import Quiet, Row, publish, row, short, tell
from benchmarks.videos import Source, copy_sources, find_sources, warm
from data_pipeline.config import CutConfig, DataConfig, EncodeConfig, FilterConfig, RayConfig, SplitConfig
from data_pipeline.dataset import shard
from data_pipeline.decode import decode_clip, decode_jpegs
from data_pipeline.execute import cluster
from data_pipeline.format import META, VIDEO, ClipMeta, frame_suffix, tar_name
from pretrain.config import AugmentConfig, RunConfig, plan
from pretrain.data.augment import draw_view, normalise, resize
from pretrain.data.load import STAGES, Laps
from pretrain.data.reader import ClipReader
from pretrain.data.slots import Slots
from pretrain.data.stream import Batches, keep_freed_memory

NUM_CLIPS = 200
WORKERS = 2
LENGTH_S, STORED_FPS = 4.0, 8.0
FRAMES, FPS, SIZE, MICRO = 16, 4.0, 256, 8
EPOCHS = 3
CPU = torch.device("cpu")
# FLOP of a training step a clip (16 frames of 256²), and the share of a dense bf16 rate that is aimed at
MODELS = {"ViT-L": (3.65e12, 0.40), "ViT-g": (10.03e12, 0.40)}
H100_FLOPS = 990e12


def run_config(root: str, **data: Any) -> RunConfig:
    """A run that reads a data set, and decodes every clip anew; of its model only the masks matter here."""
    whole = {"shards": root, "frames": FRAMES, "fps": FPS, "size": SIZE, "workers": WORKERS}
    plain = {**whole, "keep_decoded": 0, **data}
    train = {"global_batch": MICRO, "micro_batch": MICRO, "precision": "fp32"}
    return RunConfig.model_validate(
        {"name": "bench", "data": plain, "train": train, "strategy": {"kind": "single"}}
    )


def open_batches(config: RunConfig, *, on_gpu: bool) -> Batches:
    """A rank's batches; on_gpu: what its workers do for a GPU, without one."""
    batches = Batches(plan(config, 1), 0, CPU)
    if on_gpu:
        layout = replace(batches._layout, on_gpu=True)
        batches._slots = Slots(layout, batches._num_slots, is_shared=config.data.workers > 0)
    return batches


def take(batches: Batches, count: int) -> None:
    """The next micro-batches, as the training process meets them."""
    for _ in range(count):
        batches._next()


def ours(root: str, count: int, *, on_gpu: bool) -> float:
    """Clips a second over `count` micro-batches, once the workers run."""
    batches = open_batches(run_config(root), on_gpu=on_gpu)
    take(batches, 3 * WORKERS)
    begin_s = time.perf_counter()
    take(batches, count)
    seconds = time.perf_counter() - begin_s
    batches.close()
    return count * MICRO / seconds


def clips_in_memory(root: str) -> list[tuple[str, Any, np.ndarray]]:
    """Encoding, bytes and the times wanted of every clip, as the loader reads it."""
    reader = ClipReader(root, "train")
    found: list[tuple[str, Any, np.ndarray]] = []
    for number in range(len(reader)):
        sample = reader.fetch([number])[0]
        assert not isinstance(sample, Exception)
        meta = ClipMeta.from_json(sample.member(META))
        wanted_s = np.arange(FRAMES) / FPS + 0.25 / meta.fps
        if meta.encoding == "jpeg":
            numbers = np.floor(wanted_s * meta.fps).astype(int)
            found.append(("jpeg", [sample.member(frame_suffix(k)) for k in numbers], wanted_s))
        else:
            found.append(("mp4", sample.member(VIDEO), wanted_s))
    return found


def _bare(root: str, count: int, worker: int, gate: Any, ended: Any) -> None:
    torch.set_num_threads(1)  # and malloc as it is: keeping freed memory costs this loop 5 %
    clips = clips_in_memory(root)
    mine = itertools.islice(itertools.cycle(clips[worker::WORKERS]), count)
    for clip in clips[:8]:
        _decode(clip)
    gate.wait()
    for clip in mine:
        _decode(clip)
    ended.put(time.perf_counter())


def _decode(clip: tuple[str, Any, np.ndarray]) -> None:
    encoding, data, wanted_s = clip
    if encoding == "jpeg":
        decode_jpegs(data)
    else:
        decode_clip(data, wanted_s)


def bare_decode(root: str, count: int) -> float:
    """Clips a second of two processes that only decode: the ceiling."""
    context = multiprocessing.get_context("spawn")
    gate, ended = context.Barrier(WORKERS + 1), context.Queue()
    each = count * MICRO // WORKERS
    workers = [
        context.Process(target=_bare, args=(root, each, worker, gate, ended)) for worker in range(WORKERS)
    ]
    for process in workers:
        process.start()
    gate.wait()
    begin_s = time.perf_counter()
    last_s = max(ended.get() for _ in workers)
    for process in workers:
        process.join()
    return each * WORKERS / (last_s - begin_s)


@dataclass
class OfVideos(Dataset[torch.Tensor]):
    """The peer that needs no shards: a video is opened, 16 frames are sought in it, cropped."""

    clips: list[tuple[str, float]]

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, number: int) -> torch.Tensor:
        import decord

        path, start_s = self.clips[number * 7919 % len(self.clips)]
        reader = decord.VideoReader(path, num_threads=1)
        rate = reader.get_avg_fps()
        wanted = np.minimum(((start_s + np.arange(FRAMES) / FPS) * rate).astype(int), len(reader) - 1)
        return cropped(reader.get_batch(wanted).asnumpy(), number)


def cropped(frames: np.ndarray, number: int) -> torch.Tensor:
    height, width = frames.shape[1:3]
    view = draw_view(height, width, AugmentConfig(), np.random.default_rng(number))
    return resize(torch.from_numpy(view.cut(frames)), SIZE, SIZE).contiguous()


def of_sample(sample: dict[str, Any], *, to_floats: bool) -> torch.Tensor:
    """webdataset's sample as the peer decodes it."""
    import decord

    reader = decord.VideoReader(io.BytesIO(sample["mp4"]), num_threads=1)
    stride = STORED_FPS / FPS
    view = cropped(reader.get_batch((np.arange(FRAMES) * stride).astype(int)).asnumpy(), 1)
    return normalise([view])[0] if to_floats else view


def _as_ours(_: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def loaded(dataset: Any, count: int) -> float:
    """Clips a second through a stock DataLoader of two workers."""
    loader = DataLoader(
        dataset,
        batch_size=MICRO,
        num_workers=WORKERS,
        prefetch_factor=2,
        worker_init_fn=_as_ours,
        multiprocessing_context="spawn",
    )
    batches = iter(loader)
    for _ in range(3 * WORKERS):
        next(batches)
    begin_s = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - begin_s
    del batches, loader
    return count * MICRO / seconds


def of_videos(videos: Path, sources: Sequence[Source], count: int) -> float:
    clips = [
        (str(path), LENGTH_S * k)
        for source in sources
        for path in sorted(videos.glob(f"{source.path.stem}-*"))
        for k in range(source.clips)
    ]
    return loaded(OfVideos(clips), count)


def of_webdataset(root: str, count: int, *, to_floats: bool) -> float:
    import webdataset

    info = ClipReader(root, "train")
    tars = [str(Path(root) / tar_name(done.stem)) for done in info.shards]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, resampled=True, seed=0, empty_check=False)
    return loaded(dataset.shuffle(100).map(functools.partial(of_sample, to_floats=to_floats)), count)


def make_shards(videos: Path, out: Path, encoding: str) -> str:
    config = DataConfig(
        name="bench",
        out=str(out),
        sources=(str(videos),),
        cut=CutConfig(length_s=LENGTH_S, stride_s=LENGTH_S),
        encode=EncodeConfig(fps=STORED_FPS, encoding=encoding),
        filters=FilterConfig(max_black=None, max_frozen=None, crop_letterbox=False),
        split=SplitConfig(eval_fraction=0.0),
        shards={"target_bytes": 4 << 20 if encoding == "mp4" else 64 << 20},
        ray=RayConfig(workers=WORKERS),
    )
    with cluster(RayConfig(workers=WORKERS)):
        shard(config, lambda *_: None)
    return config.out


def measure_speed(sources: Sequence[Source], scratch: Path, turns: int, quiet: Quiet) -> Iterator[Row]:
    """Ours, the ceiling and the peers, in turns."""
    videos = scratch / "videos"
    copy_sources(sources, videos)
    for encoding in ("mp4", "jpeg"):
        root = make_shards(videos, scratch / encoding, encoding)
        count = 150 if encoding == "mp4" else 60
        sides: dict[str, Callable[[], float]] = {
            "as for a GPU": functools.partial(ours, root, count, on_gpu=True),
            "ready floats": functools.partial(ours, root, count, on_gpu=False),
            "bare decode": functools.partial(bare_decode, root, count),
        }
        beside = {"as for a GPU": ["bare decode"], "ready floats": ["bare decode"]}
        if encoding == "mp4":
            sides["decord on the videos, to bytes"] = functools.partial(of_videos, videos, sources, 20)
            for name, mode, to_floats in (
                ("webdataset and decord, to bytes", "as for a GPU", False),
                ("webdataset and decord, to floats", "ready floats", True),
            ):
                sides[name] = functools.partial(of_webdataset, root, count, to_floats=to_floats)
                beside[mode].append(name)
            beside["as for a GPU"].append("decord on the videos, to bytes")
        found: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns):
            for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
                warm(Path(root) / "shards")
                warm(videos)
                quiet.wait()
                found[name].append(sides[name]())
                tell(f"{encoding}, {name}: {found[name][-1]:.1f} clips/s")
        for mode, names in beside.items():
            for name in names:
                yield row(f"{encoding}, {mode}", "clips/s", "clips/s", found[mode], found[name], name)


def measure_costs(sources: Sequence[Source], scratch: Path) -> Iterator[Row]:
    """CPU by stage, memory and open files: what a busy machine hardly changes."""
    videos = scratch / "videos"
    if not videos.exists():
        copy_sources(sources, videos)
    for encoding in ("mp4", "jpeg"):
        if not (scratch / encoding).exists():
            make_shards(videos, scratch / encoding, encoding)
        yield from measure_stages(str(scratch / encoding), encoding)
    yield from measure_growth(str(scratch / "mp4"))


def measure_stages(root: str, encoding: str) -> Iterator[Row]:
    """CPU milliseconds a clip by stage, in one process, and the cores that an H100 takes."""
    for on_gpu, mode in ((True, "as for a GPU"), (False, "ready floats")):
        batches = open_batches(run_config(root, workers=0), on_gpu=on_gpu)
        take(batches, 4)
        batches.take_stage_ms()
        begin_s, count = time.process_time(), 25
        with patch.object(Laps, "clock", staticmethod(time.process_time)):
            take(batches, count)
        total_ms = 1000 * (time.process_time() - begin_s) / (count * MICRO)
        stages = batches.take_stage_ms()
        for stage in STAGES:
            yield row(f"{encoding}, {mode}, CPU by stage", stage, "ms/clip", [stages[stage]])
        yield row(f"{encoding}, {mode}, CPU by stage", "all", "ms/clip", [total_ms])
        if on_gpu:
            for model, (flops, share) in MODELS.items():
                clips_per_s = share * H100_FLOPS / flops
                cores = clips_per_s * total_ms / 1000
                found = row(f"{encoding}, cores for one H100", model, "cores", [cores])
                yield found | {"clips_per_s": short(clips_per_s), "share_of_peak": share}
        batches.close()


def measure_growth(root: str) -> Iterator[Row]:
    """Memory and open files of the rank and its workers after each of three epochs."""
    config = run_config(root)
    batches = open_batches(config, on_gpu=False)
    take(batches, 4)
    epoch = len(batches.corpus.readers[0]) // MICRO
    for number in range(EPOCHS):
        take(batches, epoch)
        megabytes, files = _held()
        yield row("growth", f"memory after epoch {number + 1}", "MB", [megabytes])
        yield row("growth", f"open files after epoch {number + 1}", "files", [float(files)])
    batches.close()


def _held() -> tuple[float, int]:
    """Proportional memory in MB, and open files, of this process and its children."""
    pids = [os.getpid(), *[child.pid or 0 for child in multiprocessing.active_children()]]
    kilobytes = files = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return kilobytes / 1000, files


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write loader.json unless only a part was asked for."""
    parser = argparse.ArgumentParser(description="From shards to batches: speed.")
    parser.add_argument("--videos", type=Path, required=True, help="folder of real videos")
    parser.add_argument("--turns", type=int, default=5, help="times that each side is measured")
    parser.add_argument(
        "--only", choices=("speed", "costs", "index"), help="print one part, and write nothing"
    )
    parser.add_argument("--wait", type=float, default=300.0, help="longest wait for a quiet machine, s")
    asked = parser.parse_args(arguments)
    quiet = Quiet(asked.wait)
    torch.set_num_threads(1)
    sources = find_sources(asked.videos, LENGTH_S, NUM_CLIPS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="be-loader-") as folder:
        scratch = Path(folder)
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "speed": lambda: measure_speed(sources, scratch, asked.turns, quiet),
            "costs": lambda: measure_costs(sources, scratch),
            "index": lambda: measure_index(scratch, row),
        }
        for part, measure in parts.items():
            if asked.only in (None, part):
                for found in measure():
                    rows.append(found)
                    tell(str(found))
    config = {
        "videos": [str(source) for source in sources],
        "clips": f"{FRAMES} frames of {SIZE}² at {FPS:g} fps out of {LENGTH_S:g} s at {STORED_FPS:g} fps, "
        f"short side 256, GOP 16, crf 18; JPEG quality 90",
        "workers": WORKERS,
        "micro_batch": MICRO,
        "gpu": "a step of 3.65 TFLOP a clip (ViT-L) or 10.03 (ViT-g) at 40 % of 990 TFLOP/s",
        "turns": asked.turns,
        "min_max": "of the ratio, turn by turn; of ours where there is no reference",
        "busy_with_other_work": quiet.loads,
    }
    publish("loader", config, rows, is_whole=asked.only is None)


if __name__ == "__main__":
    main()
