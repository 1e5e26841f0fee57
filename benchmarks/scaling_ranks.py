"""One rank of benchmarks/scaling.py: torchrun starts `python -m benchmarks.scaling_ranks JOBS FOUND`.

A core a rank: torch has one thread, whatever the number of ranks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.estimate.communication import Called, called
from launch.estimate.memory import Weights
from launch.outline import num_parameters
from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.config import Plan, RunConfig, plan
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World, gather_into
from pretrain.strategy.deepspeed import join_world

WARM = 1


def config_of(job: dict[str, Any], ranks: int) -> RunConfig:
    """ViT-tiny, 8 frames of 64²; job: stage, clips (of a rank), overlaps."""
    return RunConfig.model_validate(
        {
            "name": "scaling",
            "data": {"shards": "nowhere", "frames": 8, "size": 64},
            "model": {
                "encoder": {"preset": "vit_tiny"},
                "predictor": {"depth": 4, "width": 192, "heads": 3},
            },
            "train": {
                "steps": 1000,
                "global_batch": ranks * job["clips"],
                "micro_batch": job["clips"],
                "precision": "fp32",
            },
            "strategy": {
                "kind": "deepspeed",
                "zero_stage": job["stage"],
                "overlap_comm": job["overlaps"],
            },
        }
    )


def batch_of(config: RunConfig, rank: int) -> Batch:
    """Clips of noise under masks of the first step, the same in every step."""
    data, clips, objective = config.data, config.train.micro_batch, config.objective
    positions = range(rank * clips, (rank + 1) * clips)
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(clips, 3, data.frames, data.size, data.size, generator=generator)
    masks = sample_masks(objective.masks, config.grid, 0, 0, positions, truncate=objective.truncate)
    return Batch(0, tuple(positions), tuple(map(str, positions)), x, masks)


def step_s(laid_out: Plan, world: World, steps: int) -> float:
    """Seconds of a step, the first ones left out; ranks begin and end together."""
    config = laid_out.config
    engine, batch, knobs = build_engine(laid_out, world), batch_of(config, world.rank), knobs_at(0, config)
    began_s = 0.0
    for number in range(WARM + steps):
        if number == WARM:
            dist.barrier()
            began_s = time.perf_counter()
        engine.backward(engine.loss(batch, engine.targets(batch)))
        engine.step(knobs)
        engine.update_target(knobs.momentum)
    dist.barrier()
    return (time.perf_counter() - began_s) / steps


def weights_of(config: RunConfig) -> Weights:
    sizes = num_parameters(config)
    return Weights(sizes["predictor"] + sizes["encoder"], sizes["predictor"], sizes["encoder"])


def alone_s(calls: Called, world: World, times: int) -> float:
    """Seconds in which the same bytes go over the same links while nothing else is done."""
    works: list[Callable[[], Any]] = []
    if calls.summed:
        summed = torch.ones(int(calls.summed) // 4)
        works.append(lambda: dist.all_reduce(summed))
    if calls.scattered:
        scattered = torch.ones(int(calls.scattered) // 4 // world.size * world.size)
        part = scattered.new_empty(scattered.numel() // world.size)
        works.append(lambda: dist.reduce_scatter_tensor(part, scattered))
    gathered = int(calls.gathered_weights + calls.gathered_target) // 4 // world.size
    if gathered:
        own, whole = torch.ones(gathered), torch.empty(gathered * world.size)
        works.append(lambda: gathered_into(whole, own))
    if world.size == 1 or not works:
        return 0.0
    for work in works:
        work()
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(times):
        for work in works:
            work()
    dist.barrier()
    return (time.perf_counter() - began_s) / times


def gathered_into(whole: Tensor, own: Tensor) -> None:
    gather_into(whole, own)


def main(jobs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    world = join_world(torch.device("cpu"), 120.0)
    found = []
    for job in json.loads(jobs.read_text()):
        laid_out = plan(config_of(job, world.size), world.size)
        calls = called(laid_out, weights_of(laid_out.config))
        found.append(
            {
                "step_s": step_s(laid_out, world, job["steps"]),
                "alone_s": alone_s(calls, world, 4),
                "bytes": sum(vars(calls).values()),
            }
        )
    if world.is_first:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    end_rank()
