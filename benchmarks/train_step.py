"""A whole training step beside its floor and peers: `python -m benchmarks.train_step --peer vjepa2=CHECKOUT`.

Ours and theirs train the same model on the same clips under the same masks (cut to equal lengths, as theirs
must be), turn by turn, in one process. The floor is the time that the step's matrix products alone would
take at the rate measured here for a large product. CHECKOUT is a clone of Meta's repository.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Quiet, Row, publish, row, short, tell
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.flops import flops_of
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World

BLOCKS = [{"blocks": 8, "spatial_scale": 0.15}, {"blocks": 2, "spatial_scale": 0.7}]
PREDICTOR = {"depth": 12, "width": 384, "heads": 12}
# name: preset, frames, pixels, clips a step
CPU_CASES = {
    "ViT-tiny, 8 frames of 64²": ("vit_tiny", 8, 64, 4),
    "ViT-S, 16 frames of 112²": ("vit_small", 16, 112, 2),
}
CUDA_CASES = {
    "ViT-L, 16 frames of 256²": ("vit_large", 16, 256, 24),
    "ViT-g, 16 frames of 256²": ("vit_giant", 16, 256, 8),
}
PARTS = ("target forward", "context and predictor forward", "backward", "optimizer", "moving average")
NUM_BATCHES = 4


def config_of(case: tuple[str, int, int, int], precision: str, truncate: str) -> RunConfig:
    preset, frames, size, clips = case
    return RunConfig.model_validate(
        {
            "name": "step",
            "data": {"shards": "nowhere", "frames": frames, "size": size},
            "model": {"encoder": {"preset": preset, "rope": "vjepa2"}, "predictor": PREDICTOR},
            "objective": {"kind": "masked_latent", "masks": BLOCKS, "truncate": truncate},
            "train": {"steps": 1000, "global_batch": clips, "micro_batch": clips, "precision": precision},
            "strategy": {"kind": "single"} if precision == "fp32" else {"kind": "deepspeed", "zero_stage": 1},
        }
    )


def batches_of(config: RunConfig, device: torch.device) -> list[Batch]:
    data, clips = config.data, config.train.micro_batch
    found = []
    for step in range(NUM_BATCHES):
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randn(clips, 3, data.frames, data.size, data.size, generator=generator)
        positions = tuple(range(clips * step, clips * (step + 1)))
        objective = config.objective
        assert objective.kind == "masked_latent"
        masks = sample_masks(
            objective.masks, config.grid, config.seed, step, positions, truncate=objective.truncate
        )
        found.append(Batch(step, positions, tuple(map(str, positions)), pixels.to(device), masks.to(device)))
    return found


class Clock:
    """Wall time, once the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def __call__(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """FLOP/s of the best of a few large products: what the machine gives to nothing but matrices."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        a @ b
        for _ in range(5):
            began = clock()
            for _ in range(3):
                a @ b
            best = max(best, 3 * 2 * size**3 / (clock() - began))
    return best


def one_step(engine: Engine, config: RunConfig, batch: Batch, clock: Clock | None = None) -> list[float]:
    """Take it. With a clock: seconds of each of PARTS."""
    knobs = knobs_at(batch.step, config)
    times = []

    def lap() -> None:
        if clock is not None:
            times.append(clock())

    lap()
    targets = engine.targets(batch)
    lap()
    output = engine.loss(batch, targets)
    lap()
    engine.backward(output)
    lap()
    update = engine.step(knobs)
    lap()
    engine.update_target(knobs.momentum)
    lap()
    assert update.applied
    return [after - before for before, after in pairwise(times)]


def rate(take: Callable[[int], object], clips: int, steps: int, clock: Clock) -> float:
    """Clips a second over so many steps."""
    began = clock()
    for number in range(steps):
        take(number % NUM_BATCHES)
    return clips * steps / (clock() - began)


def measure(case: str, given: argparse.Namespace, device: torch.device, quiet: Quiet) -> list[Row]:
    shape = (CPU_CASES | CUDA_CASES)[case]
    precision = "bf16" if device.type == "cuda" else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clock, clips = Clock(device), shape[3]
    rows: list[Row] = []
    config = config_of(shape, precision, "raster")
    batches = batches_of(config, device)
    engine = build_engine(plan(config, 1), World(0, 1, device))
    peer = None
    if given.vjepa2 is not None:
        from benchmarks.peer_vjepa2 import PeerStep

        peer = PeerStep(given.vjepa2, config, device, dtype)
        lists = [peer.lists(batch.masks) for batch in batches]
    ours: list[float] = []
    theirs: list[float] = []
    matrices: list[float] = []
    for turn in range(given.turns + 1):  # the first warms up
        quiet.wait()
        found = rate(lambda n: one_step(engine, config, batches[n]), clips, given.steps, clock)
        other = None
        if peer is not None:
            other = rate(lambda n: peer.step(batches[n].clips, *lists[n], 0.999), clips, given.steps, clock)
        if turn:
            ours.append(found)
            matrices.append(matrix_rate(device, dtype, clock))
            theirs += [] if other is None else [other]
    rows.append(
        row(case, "clips a second, equal masks", "clips/s", ours, theirs, "Meta's code" if theirs else "")
    )
    flops = statistics.mean(flops_of(config, batch.masks).model for batch in batches) / clips
    best = statistics.median(matrices)
    for name, rates in (("of ours", ours), ("of Meta's code", theirs)):
        if rates:
            shares = [100 * each * flops / most for each, most in zip(rates, matrices, strict=True)]
            rows.append(row(case, f"matrix rate that the products {name} reach", "%", shares))
    rows.append(row(case, "matrix rate", "GFLOP/s", [each / 1e9 for each in matrices]))
    rows.append(row(case, "FLOPs a clip", "GFLOP", [flops / 1e9]))
    parts = [one_step(engine, config, batches[n % NUM_BATCHES], clock) for n in range(given.steps)]
    whole = statistics.median(map(sum, parts))
    for name, times in zip(PARTS, zip(*parts, strict=True), strict=True):
        found = row(case, f"part: {name}", "ms", [1000 * each for each in times])
        rows.append(found | {"share": short(statistics.median(times) / whole)})
    tell(f"{case}: {statistics.median(ours):.2f} clips/s, floor {best / flops:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="vjepa2=a clone of it"
    )
    parser.add_argument("--case", action="append", help="one or several of the cases; without it all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    peers = dict(each.split("=", 1) for each in given.peer)
    given.vjepa2 = Path(peers["vjepa2"]) if "vjepa2" in peers else None
    device = torch.device(given.device)
    quiet = Quiet(given.wait_s)
    cases = CPU_CASES if device.type == "cpu" else CUDA_CASES
    rows: list[Row] = []
    for case in given.case or cases:
        rows += measure(case, given, device, quiet)
    facts: dict[str, Any] = {"turns": given.turns, "steps": given.steps, "busy_with_other_work": quiet.loads}
    is_whole = given.case is None
    publish(f"train_step_{device.type}", facts, rows, is_whole=is_whole)


if __name__ == "__main__":
    main()
