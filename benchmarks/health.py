"""What looking at features costs: `python -m benchmarks.health`.

A model trains on clips of noise in this process; a look is timed beside the steps of the same run. The share
is that of a look at every `health.every` steps, at its default. On a GPU, where there is one: its time ends
when the device is done.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.measuring import Quiet, Row, publish, short, tell
from pretrain.build import build_engine
from pretrain.config import HealthConfig, RunConfig, plan
from pretrain.health import fixed_positions, look_at
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Model = dict[str, Any]
# name: (encoder, predictor, frames, pixels, clips a step)
CASES: dict[str, tuple[Model, Model, int, int, int]] = {
    "the demo's, width 128": (
        {"preset": "vit_tiny", "width": 128, "depth": 4, "heads": 2, "patch": 8},
        {"depth": 2, "width": 64, "heads": 2},
        8,
        64,
        8,
    ),
    "ViT-S, width 384": ({"preset": "vit_small"}, {"depth": 12, "width": 384, "heads": 6}, 16, 112, 4),
    "ViT-B, width 768": ({"preset": "vit_base"}, {"depth": 12, "width": 384, "heads": 12}, 16, 112, 2),
}


def config_of(case: str) -> RunConfig:
    encoder, predictor, frames, size, clips = CASES[case]
    return RunConfig.model_validate(
        {
            "name": "health",
            "data": {"shards": "nowhere", "frames": frames, "size": size},
            "model": {"encoder": encoder, "predictor": predictor},
            "train": {"steps": 100, "global_batch": clips, "micro_batch": clips, "precision": "fp32"},
            "strategy": {"kind": "single"},
        }
    )


def batch_of(config: RunConfig, step: int) -> Batch:
    data, clips = config.data, config.train.micro_batch
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(clips, 3, data.frames, data.size, data.size, generator=generator)
    positions = tuple(range(clips * step, clips * (step + 1)))
    masks = sample_masks(config.objective.masks, config.grid, config.seed, step, positions)
    return Batch(step, positions, tuple(map(str, positions)), pixels.to(DEVICE), masks.to(DEVICE))


def done() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def one_step(engine: Engine, config: RunConfig, step: int, *, looks: bool) -> tuple[float, float]:
    """Milliseconds of the step, and of the look after it."""
    batch, knobs = batch_of(config, step), knobs_at(step, config)
    began = done()
    output = engine.loss(batch, engine.targets(batch))
    engine.backward(output)
    update = engine.step(knobs, measure=looks)
    engine.update_target(knobs.momentum)
    ended = done()
    assert update.applied
    if looks:
        fixed = fixed_positions(config.grid[0] * config.grid[1] * config.grid[2])
        look_at(output, fixed).values()
        engine.norms()
    return 1000 * (ended - began), 1000 * (done() - ended)


def measure(case: str, turns: int) -> list[Row]:
    config = config_of(case)
    engine = build_engine(plan(config, 1), World(0, 1, DEVICE))
    one_step(engine, config, 0, looks=True)
    steps, looks = [], []
    for turn in range(turns):
        steps.append(one_step(engine, config, 1 + 2 * turn, looks=False)[0])
        looks.append(one_step(engine, config, 2 + 2 * turn, looks=True)[1])
    every = HealthConfig().every
    shares = [look / (every * step + look) for look, step in zip(looks, steps, strict=True)]
    step, look = sorted(steps)[turns // 2], sorted(looks)[turns // 2]
    return [
        {
            "case": case,
            "metric": f"share of a look every {every} steps",
            "unit": "%",
            "ours": short(100 * sorted(shares)[turns // 2]),
            "reference": short(step),
            "reference_name": "ms a step",
            "ratio": None,
            "min": short(100 * min(shares)),
            "max": short(100 * max(shares)),
            "n": turns,
            "look_ms": short(look),
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    quiet, rows = Quiet(given.wait_s), []
    for case in CASES:
        quiet.wait()
        tell(case)
        rows += measure(case, given.turns)
    config = {"turns": given.turns, "busy_with_other_work": quiet.loads, "device": str(DEVICE)}
    publish("health", config, rows, is_whole=True)


if __name__ == "__main__":
    main()
