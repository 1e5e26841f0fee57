"""The most that a rank's tensors take in a whole step of real ranks, beside what the formulas say."""

from __future__ import annotations

import gc
from typing import Any

import torch

from pretrain.activations import activations, last_gradients
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.masks import sample_masks
from pretrain.memory import at_once, held
from pretrain.objective.base import Batch
from pretrain.objective.make import shapes_of
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World
from tests.pretrain.live_bytes import LiveBytes


def noise(config: RunConfig, positions: range, step: int) -> Batch:
    data, objective = config.data, config.objective
    x = torch.randn(len(positions), 3, data.frames, data.size, data.size)
    masks = sample_masks(objective.masks, config.grid, 0, step, positions, truncate=objective.truncate)
    return Batch(step, tuple(positions), tuple(map(str, positions)), x, masks)


def measure_step(config: RunConfig, world: World) -> dict[str, Any]:
    """Two steps as the loop takes them; the most that is alive in the second, and in which phase.

    formula: of each moment, what pretrain/memory.py says.
    """
    laid_out, clips = plan(config, world.size), config.train.micro_batch
    phases: dict[str, int] = {}
    with LiveBytes() as live:
        engine = build_engine(laid_out, world)

        def ended(phase: str) -> None:
            phases[phase] = max(phases.get(phase, 0), live.most) if step else 0
            live.restart()

        for step in range(2):
            knobs = knobs_at(step, config)
            for number in range(laid_out.micro_batches):
                gc.collect()
                live.restart()
                first = world.rank * laid_out.rank_batch + number * clips
                batch = noise(config, range(first, first + clips), 0)  # masks of one size
                targets = engine.targets(batch)
                ended("targets")
                output = engine.loss(batch, targets)
                ended("forward")
                engine.backward(output)
                ended("backward")
                del targets, output
            gc.collect()
            engine.step(knobs)
            ended("step")
            engine.update_target(0.99)
            if engine.ema is not None:
                engine.ema.ready()
            ended("target")
    made, encoder = shapes_of(config)
    sizes = [
        sum(p.numel() for p in each.parameters()) for each in (made, encoder, made.get_submodule("predictor"))
    ]
    told = held(laid_out, sizes[0], 0 if engine.target is None else sizes[1])
    alive = activations(config, batch.masks, "cpu")
    moments = at_once(laid_out, told, alive, sizes[0], sizes[2], last_gradients(config))
    return {"phases": phases, "formula": moments}
