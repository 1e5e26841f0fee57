"""What the moving average costs of a step, beside its floor and its peers: `python -m benchmarks.ema`.

A ViT-S on 16 frames of 112² (on a GPU a ViT-L of 256²) trains on noise; after each step the average is moved
and its forward copy written, which is timed to its end, without what would go on beside it. The floor: each
element of average and weights read once, the average written, and the copy written, at the bandwidth that a
large copy reaches here. Peers: the loop that published code has, and torch's own `swa_utils`, both over the
same parameters in float32. Over two ranks (gloo; on a CPU only) each moves half and gathers the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.contenders import CASES, Clock, alone, batches_of
from benchmarks.measuring import Quiet, Row, publish, row, short, tell, torchrun
from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World

CPU_CASE, CUDA_CASE = "ViT-S, 16 frames of 112²", "ViT-L, 16 frames of 256²"
MOMENTUM = 0.999
STEPS = 2  # that are timed, after one that warms up
COPY_BYTES = 512 << 20  # of the tensor whose copy says what memory gives
Found = dict[str, list[float]]  # seconds of each turn


def config_of(case: str, device: torch.device, ranks: int) -> RunConfig:
    shape = CASES[device.type][case]
    preset, frames, size, clips = shape.preset, shape.frames, shape.size, min(shape.clips, 4)
    precision = "bf16" if device.type == "cuda" else "fp32"
    return RunConfig.model_validate(
        {
            "name": "ema",
            "data": {"shards": "nowhere", "frames": frames, "size": size},
            "model": {"encoder": {"preset": preset}, "predictor": {"depth": 12, "width": 384, "heads": 12}},
            "train": {"global_batch": clips * ranks, "micro_batch": clips, "precision": precision},
            "strategy": {"kind": "single"}
            if ranks == 1 and precision == "fp32"
            else {"kind": "deepspeed", "zero_stage": 1},
        }
    )


def one_step(engine: Engine, config: RunConfig, batches: list[Any], number: int) -> None:
    batch = batches[number % len(batches)]
    engine.backward(engine.loss(batch, engine.targets(batch)))
    engine.step(knobs_at(number, config))


def timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def measure(config: RunConfig, world: World, turns: int, quiet: Quiet | None) -> Found:
    clock = Clock(world.device)
    engine = build_engine(plan(config, world.size), world)
    ema, target = engine.ema, engine.target
    assert ema is not None and target is not None
    batches = batches_of(config, world.device)
    weights = [p.detach().float().clone() for p in target.parameters()]
    averages = {name: [w.clone() for w in weights] for name in ("loop", "swa")}
    multi = get_ema_multi_avg_fn(MOMENTUM)
    flat = torch.zeros(COPY_BYTES // 4, device=world.device)
    other = torch.zeros_like(flat)

    def ours() -> None:
        ema.update(MOMENTUM)
        ema.refresh()
        ema.ready()

    @torch.no_grad()
    def loop() -> None:
        for q, p in zip(averages["loop"], weights, strict=True):
            q.mul_(MOMENTUM).add_(p, alpha=1 - MOMENTUM)

    def swa() -> None:
        multi(averages["swa"], weights, None)

    works = {
        "ours": ours,
        "moved": lambda: ema.update(MOMENTUM),
        "loop": loop,
        "swa": swa,
        "copy": lambda: other.copy_(flat),
    }
    found: Found = {name: [] for name in works}
    steps = [timed(clock, lambda: one_step(engine, config, batches, 0)) for _ in range(1 + STEPS)]
    found["step"] = steps[1:]
    for turn in range(turns + 1):  # the first warms up
        if quiet is not None:
            quiet.wait()
        for name, work in works.items() if turn % 2 else reversed(works.items()):
            seconds = timed(clock, work)
            if turn:
                found[name].append(seconds)
    found["numel"] = [float(sum(average.numel() for average in ema.average))]
    found["all"] = [float(sum(w.numel() for w in weights))]
    return found


def rank(case: str, turns: int, out: Path) -> None:
    """One of two ranks."""
    from pretrain.strategy.deepspeed import join_world

    torch.set_num_threads(1)
    world = join_world(torch.device("cpu"), 120.0)
    found = measure(config_of(case, world.device, world.size), world, turns, None)
    if world.is_first:
        out.write_text(json.dumps(found))
    end_rank()


def over_ranks(case: str, turns: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["-m", "benchmarks.ema", "--rank", str(out), "--turns", str(turns), "--case", case]
        subprocess.run([*torchrun(2), *words], check=True, stderr=subprocess.DEVNULL, env={**os.environ})
        found: Found = json.loads(out.read_text())
        return found


def rows_of(name: str, found: Found, copy_bytes: int, *, has_peers: bool) -> list[Row]:
    """copy_bytes: of an element of the forward copy."""
    own, whole = found["numel"][0], found["all"][0]
    moved = own * (3 * 4 + 4) + whole * copy_bytes  # read two, write one; read the average, write the copy
    rates = [2 * COPY_BYTES / seconds for seconds in found["copy"]]
    floors = [rate / moved for rate in rates]
    together = [1 / seconds for seconds in found["ours"]]
    rows = [
        row(
            name,
            "moved and copied, times a second",
            "1/s",
            together,
            floors,
            "floor: bytes at that of a copy",
        )
    ]
    if has_peers:
        alone = [1 / seconds for seconds in found["moved"]]
        for key, words in (("loop", "mul_ and add_, one by one"), ("swa", "torch.optim.swa_utils")):
            peers = [1 / seconds for seconds in found[key]]
            rows.append(row(name, "moved, times a second", "1/s", alone, peers, words))
    step_s = statistics.median(found["step"])
    shares, step_ms = [100 * each / (each + step_s) for each in found["ours"]], 1000 * step_s
    rows.append(row(name, "share of a step", "%", shares) | {"step_ms": short(step_ms)})
    return [*rows, row(name, "bandwidth of a copy", "GB/s", [rate / 1e9 for rate in rates])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three turns, no waiting; printed, not written")
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    parser.add_argument("--rank", type=Path, help="what the benchmark starts its ranks with")
    parser.add_argument("--case", default=None, help="as in train_step")
    given = parser.parse_args()
    device = torch.device(given.device)
    case = given.case or (CUDA_CASE if device.type == "cuda" else CPU_CASE)
    turns = 3 if given.quick else given.turns
    if given.rank is not None:
        rank(case, turns, given.rank)
    quiet = Quiet(0.0 if given.quick else given.wait_s)
    tell(f"{case}, one rank")
    config = config_of(case, device, 1)
    copy_bytes = 2 if config.train.precision == "bf16" else 4
    world = World(0, 1, device) if config.strategy.kind == "single" else alone(device)
    one = measure(config, world, turns, None if given.quick else quiet)
    rows = rows_of(f"{case}, 1 rank", one, copy_bytes, has_peers=True)
    if device.type == "cpu":
        tell(f"{case}, two ranks over gloo")
        quiet.wait()
        rows += rows_of(f"{case}, 2 ranks", over_ranks(case, turns), copy_bytes, has_peers=False)
    facts = {"turns": turns, "clips_a_rank": config.train.micro_batch, "busy_with_other_work": quiet.loads}
    publish("ema" if device.type == "cpu" else "ema_cuda", facts, rows, is_whole=not given.quick)


if __name__ == "__main__":
    main()
