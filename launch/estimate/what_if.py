"""The same run on other numbers of GPUs, the global batch as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from launch.estimate.communication import sent
from launch.estimate.memory import Weights, largest_micro_batch, of_stage, with_micro_batch
from launch.estimate.saving import DAY_S, saving
from launch.estimate.speed import speed
from launch.estimate.stated import Stated
from pretrain.config import RunConfig
from pretrain.flops import Parts, backward_share
from pretrain.memory import checkpoint_bytes

MOST_GPUS = 1024
NODE_GPUS = 8


@dataclass(frozen=True)
class WhatIf:
    """One number of GPUs. problem: why it cannot be, in words; the rest is then None.

    micro_batch: the configured one, or the largest smaller one that fits and divides a rank's clips. days:
    with what failures and saves cost, saving as often as is best. lost: the share of the time that they cost.
    """

    gpus: int
    problem: str | None = None
    micro_batch: int | None = None
    step_s: float | None = None
    clips_per_s: float | None = None
    days: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    lost: float | None = None
    binds: str | None = None


def what_if(config: RunConfig, stated: Stated, weights: Weights, parts: Parts) -> Iterator[WhatIf]:
    """1, 2, 4 … 1,024 GPUs, nodes filled first: as stated, or of 8 where a single GPU is.

    parts: FLOPs of a clip.
    """
    gpus = 1
    while gpus <= MOST_GPUS:
        yield _on(gpus, config, stated, weights, parts)
        gpus *= 2


def _on(
    gpus: int,
    config: RunConfig,
    stated: Stated,
    weights: Weights,
    parts: Parts,
) -> WhatIf:
    if config.train.global_batch % gpus:
        return WhatIf(gpus, "no divisor")
    each = min(gpus, NODE_GPUS if stated.ranks == 1 else stated.gpus_per_node)
    there = replace(stated, nodes=-(-gpus // each), gpus_per_node=each)
    if there.ranks != gpus:
        return WhatIf(gpus, f"no whole nodes of {each}")
    if config.strategy.kind == "single" and gpus > 1:
        config = of_stage(config, 0 if config.train.precision == "fp32" else 1)
    device = there.gpu.device
    fits = largest_micro_batch(config, gpus, there.usable, weights, device, at_most=config.train.micro_batch)
    if not fits:
        return WhatIf(gpus, "memory: no clip fits", binds="memory")
    laid_out = with_micro_batch(config, gpus, fits)
    flops = sum(part.model for part in parts.values())
    found = speed(config, there, flops, backward_share(parts), sent(laid_out, weights))
    saves = saving(
        checkpoint_bytes(weights.trained, weights.target),
        there,
        found.step_s,
        config.train.steps,
        config.train.checkpoint_every,
        beside=config.train.save_in_background,
    )
    days = config.train.steps * found.step_s / DAY_S / max(1e-9, 1 - saves.lost)
    hours = 24 * days * gpus
    return WhatIf(
        gpus=gpus,
        micro_batch=fits,
        step_s=found.step_s,
        clips_per_s=found.clips_per_s,
        days=days,
        gpu_hours=hours,
        cost=None if stated.price is None else hours * stated.price,
        lost=saves.lost,
        binds=found.binds,
    )
