"""A whole step of real ranks: the most that tensors take, what collectives work on, beside the formulas."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from launch.estimate.communication import called
from launch.estimate.memory import Weights
from pretrain.activations import activations, last_gradients
from pretrain.build import build_engine
from pretrain.config import Plan, RunConfig, plan
from pretrain.masks import Masks, sample_masks
from pretrain.memory import at_once, held
from pretrain.objective.base import Batch
from pretrain.objective.make import shapes_of
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World
from tests.pretrain.live_bytes import LiveBytes


class Collectives(TorchDispatchMode):
    """Bytes that each kind of collective works on: the largest tensor of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sizes = [each.nbytes for each in tree_iter(args) if isinstance(each, torch.Tensor)]
            self.bytes[func._schema.name.partition("::")[2].strip("_")] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))


def noise(config: RunConfig, positions: range) -> Batch:
    """Clips of noise, under masks of the first step."""
    data, objective = config.data, config.objective
    x = torch.randn(len(positions), 3, data.frames, data.size, data.size)
    masks = sample_masks(objective.masks, config.grid, 0, 0, positions, truncate=objective.truncate)
    return Batch(0, tuple(positions), tuple(map(str, positions)), x, masks)


def measure_step(config: RunConfig, world: World) -> dict[str, Any]:
    """Two steps as the loop takes them; of the second the most that is alive, by phase, and what is sent.

    formula, called: what `pretrain/memory.py` and `launch/estimate/communication.py` say of the same.
    """
    laid_out, clips = plan(config, world.size), config.train.micro_batch
    phases: dict[str, int] = {}
    with LiveBytes() as live:
        engine = build_engine(laid_out, world)
        for step in range(2):
            knobs = knobs_at(step, config)
            phases.clear()

            def ended(phase: str) -> None:
                phases[phase] = max(phases.get(phase, 0), live.most)
                live.restart()

            gc.collect()
            live.restart()
            with Collectives() as collectives:
                for number in range(laid_out.micro_batches):
                    first = world.rank * laid_out.rank_batch + number * clips
                    batch = noise(config, range(first, first + clips))
                    targets = engine.targets(batch)
                    ended("target")
                    output = engine.loss(batch, targets)
                    ended("forward")
                    engine.backward(output)
                    ended("backward")
                    del targets, output
                engine.step(knobs)
                ended("step")
                engine.update_target(0.99)
                if engine.ema is not None:
                    engine.ema.ready()
    weights = weights_of(config)
    return {
        "phases": phases,
        "formula": _formula(laid_out, weights, batch.masks),
        "collectives": dict(collectives.bytes),
        "called": vars(called(laid_out, weights)),
    }


def weights_of(config: RunConfig) -> Weights:
    made, encoder = shapes_of(config)
    trained, predictor, target = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (made, made.get_submodule("predictor"), encoder)
    )
    return Weights(trained, predictor, 0 if config.target.kind == "online" else target)


def _formula(laid_out: Plan, weights: Weights, masks: Masks) -> dict[str, float]:
    config = laid_out.config
    return at_once(
        laid_out,
        held(laid_out, weights.trained, weights.target),
        activations(config, masks, "cpu"),
        weights.trained,
        weights.predictor,
        last_gradients(config),
    )
