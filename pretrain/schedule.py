"""Learning rate, weight decay and momentum as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config import RunConfig


@dataclass(frozen=True)
class Knobs:
    """What changes from step to step."""

    lr: float
    weight_decay: float
    momentum: float


def cosine(start: float, end: float, done: float) -> float:
    """Half a cosine from start (done 0) to end (done 1)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def knobs_at(step: int, config: RunConfig) -> Knobs:
    """The knobs of the step that follows `step` finished ones, 0 for the first.

    lr: linear from start_lr over warmup_steps, then constant, or a cosine to final_lr at the last step.
    weight decay: constant, or a cosine to its end point. momentum: linear from start to end.
    """
    optim, momentum, steps = config.optim, config.target.momentum, config.train.steps
    last = max(1, steps - 1)
    if step < optim.warmup_steps:
        lr = optim.start_lr + (optim.lr - optim.start_lr) * (step + 1) / optim.warmup_steps
    elif optim.final_lr is None:
        lr = optim.lr
    else:
        lr = cosine(optim.lr, optim.final_lr, (step - optim.warmup_steps) / max(1, last - optim.warmup_steps))
    decay = optim.weight_decay
    if optim.final_weight_decay is not None:
        decay = cosine(decay, optim.final_weight_decay, step / last)
    return Knobs(lr, decay, momentum.start + (momentum.end - momentum.start) * min(1.0, step / last))
