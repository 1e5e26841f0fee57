"""From shards to a GPU beside a training step, part by part: `python -m benchmarks.feeding`.

Copies: the crops of a micro-batch in pinned slots, sent by the run's own code, beside one bare copy of as
many pinned bytes. Augmentation: the same crops resized, mirrored and normalised on the device, beside the
time that their bytes take to read and the clips' to write at the bandwidth of a large copy. Feeding: the same
step on clips from shards through the run's own loader, on clips that lie in its slots already, and on clips
that lie on the device, turn by turn. A turn from shards begins with an empty loader and a few steps that are
not timed, so that what workers had got ready while others took their turn hides nothing. Clips are rendered
first: 64 of 4 s at 8 frames a second. On a CPU a small model; there are no copies there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import CASES, TRIED, Clock, Shape, alone, batches_of, config_of, one_step
from benchmarks.loader import open_batches
from benchmarks.measuring import Quiet, Row, publish, row, short, so_far, tell
from benchmarks.rendered import FPS, write_rendered
from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.config import Plan, RunConfig, plan
from pretrain.data.augment import normalise
from pretrain.data.copies import on_their_way
from pretrain.data.load import Loaded
from pretrain.data.stream import Batches, num_outstanding
from pretrain.objective.base import Batch
from pretrain.pinned import sent
from pretrain.strategy.base import Engine, World

CASE = {"cuda": "ViT-L, 16 frames of 256²", "cpu": "ViT-tiny, 8 frames of 64²"}
CLIPS = 64
SEEN_FPS = 4.0
WARM = 4  # steps of a turn that are not timed
REPEATS = 10  # of a copy or an augmentation, timed together
LARGE_BYTES = 512 << 20  # of the copy on the device that says what its memory gives
ENCODINGS = ("mp4", "jpeg")


@dataclass(frozen=True)
class Crops:
    """Of a micro-batch, as workers leave them for a GPU: uint8 (T, h, w, C) of different sizes, to `size`."""

    views_THWC: list[Tensor]
    mirrored: list[bool]
    size: int

    @property
    def num_bytes(self) -> int:
        return sum(view.nbytes for view in self.views_THWC)


class Held(Batches):
    """Batches whose slots were filled once, for a run without workers: clips that cost nothing to load."""

    def __init__(self, laid_out: Plan, device: torch.device) -> None:
        super().__init__(laid_out, 0, device)
        self._held: deque[Loaded] = deque()

    def _next(self) -> Loaded:
        while len(self._held) < self._num_slots:
            self._held.append(super()._next())
        self._held.rotate(-1)
        return self._held[-1]


def run_of(shape: Shape, root: str, workers: int | None) -> RunConfig:
    """A training run on that data set; workers: None for the default."""
    changes: dict[str, Any] = {"data.shards": root, "data.fps": SEEN_FPS, "data.keep_decoded": 0}
    if workers is not None:
        changes["data.workers"] = workers
    return config_of(shape, changes)


def crops_of(batches: Batches) -> Crops:
    """Of the next micro-batch. batches: with slots of bytes."""
    found = batches._next()
    slot = found.request.slot
    views = [batches._slots.crop(slot, number, crop) for number, crop in enumerate(found.crops)]
    return Crops(views, [crop.is_mirrored for crop in found.crops], batches._layout.size)


def timed(work: Callable[[], object], clock: Clock) -> float:
    """Seconds of one of REPEATS calls in a row, after one that warms up."""
    work()
    began = clock()
    for _ in range(REPEATS):
        work()
    return (clock() - began) / REPEATS


def copy_rows(case: str, batches: Held, turns: int, quiet: Quiet, device: torch.device) -> list[Row]:
    """From the host to a GPU, on the stream on which the run does it."""
    copies, crops, clock = batches._copies, crops_of(batches), Clock(device)
    assert copies is not None, "slots are copied to a GPU only"
    plain = torch.zeros(crops.num_bytes, dtype=torch.uint8)
    pinned = plain.pin_memory()
    there = torch.empty_like(plain, device=device)
    works: dict[str, Callable[[], object]] = {
        "crops": lambda: on_their_way(crops.views_THWC, device),
        "tensor": lambda: sent(plain, device),
        "bare": lambda: there.copy_(pinned, non_blocking=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        quiet.wait()
        with torch.cuda.stream(copies.stream):
            for name, work in works.items():
                rates[name].append(crops.num_bytes / 1e9 / timed(work, clock))
    limit = rates["bare"], "one copy of as many pinned bytes"
    return [
        row(case, "to the GPU: crops of a micro-batch", "GB/s", rates["crops"], *limit)
        | {"bytes": crops.num_bytes, "copies": len(crops.views_THWC)},
        row(case, "to the GPU: a tensor that is not pinned", "GB/s", rates["tensor"], *limit),
    ]


def augmentation_rows(case: str, crops: Crops, turns: int, quiet: Quiet, device: torch.device) -> list[Row]:
    """Crops to clips where they lie, beside the bytes that this must read and write."""
    clock = Clock(device)
    views = on_their_way(crops.views_THWC, device)
    out_bytes = normalise(views, crops.size, crops.mirrored).nbytes
    large = torch.zeros(LARGE_BYTES // 4, device=device)
    other = torch.empty_like(large)
    ours: list[float] = []
    floors: list[float] = []
    for _ in range(turns):
        quiet.wait()
        ours.append(timed(lambda: normalise(views, crops.size, crops.mirrored), clock))
        bandwidth = 2 * LARGE_BYTES / timed(lambda: other.copy_(large), clock)
        floors.append((crops.num_bytes + out_bytes) / bandwidth)
    rates, limits = ([1 / seconds for seconds in each] for each in (ours, floors))
    where = "on the GPU" if device.type == "cuda" else "on the CPU"
    name = f"resized and normalised {where}"
    bound = "floor: bytes at that of a copy"
    return [
        row(case, f"{name}, micro-batches a second", "1/s", rates, limits, bound),
        row(case, f"{name}, of a micro-batch", "ms", [1000 * seconds for seconds in ours])
        | {"floor_ms": short(1000 * min(floors))},
    ]


@dataclass
class Fed:
    """Clips a second, turn by turn: from shards, from slots that stay filled, from the device. waiting: % of
    the time. worker_ms: of a clip, in the worker.
    """

    shards: list[float]
    slots: list[float]
    device: list[float]
    waiting: list[float]
    worker_ms: list[float]


def take_steps(
    take: Callable[[], Sequence[Batch] | Any], engine: Engine, config: RunConfig, count: int
) -> None:
    for _ in range(count):
        for batch in take():
            one_step(engine, config, batch)


def feed(
    engine: Engine,
    config: RunConfig,
    held: Batches,
    device: torch.device,
    turns: int,
    steps: int,
    quiet: Quiet,
) -> Fed:
    """The same steps from three places; config: of the run that reads shards."""
    clock, clips = Clock(device), config.train.micro_batch
    there = deque(batches_of(config, device, 2))
    found = Fed([], [], [], [], [])

    def from_device() -> list[Batch]:
        there.rotate()
        return [there[0]]

    def seconds(take: Callable[[], Any], before: Callable[[], object] = lambda: None) -> float:
        take_steps(take, engine, config, WARM)
        before()
        began = clock()
        take_steps(take, engine, config, steps)
        return clock() - began

    laid_out = plan(config, 1)
    with closing(Batches(laid_out, 0, device)) as batches:
        batches._next()  # workers start
        for _ in range(turns):
            quiet.wait()
            found.device.append(clips * steps / seconds(from_device))
            found.slots.append(clips * steps / seconds(lambda: held.take(1)))
            for _ in range(num_outstanding(laid_out)):
                batches._next()
            batches.take_stage_ms()
            passed = seconds(lambda: batches.take(1), batches.take_wait_s)
            found.shards.append(clips * steps / passed)
            found.waiting.append(100 * batches.take_wait_s() / passed)
            found.worker_ms.append(sum(batches.take_stage_ms().values()))
    return found


def fed_rows(case: str, fed: Fed, clips: int, alone_s: Sequence[float], workers: int) -> list[Row]:
    """clips: a step. alone_s: seconds of copies and augmentation with nothing beside them; none on a CPU."""
    rows = [
        row(case, "steps on clips from shards", "clips/s", fed.shards, fed.slots, "on clips that are loaded"),
        row(case, "of the time, waiting for clips", "%", fed.waiting),
        row(
            case, "steps on clips that are loaded", "clips/s", fed.slots, fed.device, "on clips on the device"
        ),
    ]
    if alone_s:
        hidden = [
            100 * (clips / there + seconds - clips / slots) / seconds
            for there, slots, seconds in zip(fed.device, fed.slots, alone_s, strict=True)
        ]
        rows.append(row(case, "of copies and augmentation, hidden behind the step", "%", hidden))
    worker = row(case, "of a clip, in its worker", "ms", fed.worker_ms)
    return [*rows, worker | {"workers": workers}]


def alone_seconds(held: Held, turns: int, device: torch.device) -> list[float]:
    """Of a micro-batch's way to the GPU and its augmentation, all that the run does for it there."""
    copies, clock = held._copies, Clock(device)
    if copies is None:
        return []

    def work() -> None:
        ahead = held._copy(copies)
        assert not isinstance(ahead, Exception)
        copies.hand_over(ahead)

    return [timed(work, clock) for _ in range(turns)]


def measure(case: str, shape: Shape, given: argparse.Namespace, scratch: Path, quiet: Quiet) -> list[Row]:
    device = torch.device(shape.device)
    stored = round(shape.frames * FPS / SEEN_FPS)
    roots = {each: write_rendered(scratch / each, CLIPS, stored, shape.size, each) for each in given.encoding}
    tell(f"{CLIPS} clips of {stored} frames rendered, in {' and '.join(roots)}")
    still = run_of(shape, next(iter(roots.values())), 0)
    held = Held(plan(still, 1), device)
    rows: list[Row] = []
    if device.type == "cuda":
        rows += copy_rows(case, held, given.turns, quiet, device)
        crops = crops_of(held)
    else:
        none = {"ours": None, "min": None, "max": None, "n": 0}
        rows.append(row(case, "to the GPU: not measured, as there is none", "GB/s", [0.0]) | none)
        crops = crops_of(open_batches(still, on_gpu=True))
    rows += augmentation_rows(case, crops, given.turns, quiet, device)
    alone_s = alone_seconds(held, given.turns, device)
    so_far(rows)
    world = alone(device) if shape.precision == "bf16" else World(0, 1, device)
    engine = build_engine(plan(still, 1), world)
    for encoding, root in roots.items():
        config = run_of(shape, root, given.workers)
        fed = feed(engine, config, held, device, given.turns, given.steps, quiet)
        clips, workers = config.train.micro_batch, config.data.workers
        rows += fed_rows(f"{case}, {encoding}, {workers} workers", fed, clips, alone_s, workers)
        so_far(rows)
        shares = max(fed.waiting)
        tell(
            f"{encoding}: {max(fed.shards):.1f} clips/s from shards, waited up to {shares:.1f} % of the time"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--device", choices=list(CASE), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--case", help="as in train_step")
    parser.add_argument("--encoding", action="append", choices=ENCODINGS, help="of clips; without it both")
    parser.add_argument("--workers", type=int, help="data.workers; without it the default")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="a turn")
    parser.add_argument("--quick", action="store_true", help="no waiting for others; nothing is written")
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    given.encoding = given.encoding or list(ENCODINGS)
    case = given.case or CASE[given.device]
    cases = CASES[given.device] | TRIED.get(given.device, {})
    if case not in cases:
        parser.error(f"--case {case!r}: there are {', '.join(map(repr, cases))}")
    quiet = Quiet(0.0 if given.quick else given.wait_s)
    with tempfile.TemporaryDirectory(prefix="foreframe-feeding-") as folder:
        rows = measure(case, cases[case], given, Path(folder), quiet)
    facts = {
        "clips": f"{CLIPS} rendered, stored at {FPS:g} frames a second, seen at {SEEN_FPS:g}",
        "turns": given.turns,
        "steps": given.steps,
        "busy_with_other_work": quiet.loads,
    }
    is_whole = not given.quick and given.case is None and len(given.encoding) == len(ENCODINGS)
    publish(f"feeding_{given.device}", facts, rows, is_whole=is_whole)


if __name__ == "__main__":
    main()
    end_rank()
