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
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def linear(start: float, end: float, done: float) -> float:
    """A straight line from start (done 0) to end (done 1)."""
    return start + done * (end - start)


def knobs_at(step: int, config: RunConfig) -> Knobs:
    """The knobs of the step that follows `step` finished ones, 0 for the first.

    The schedule is as long as optim.schedule_steps, or as the run. lr: linear from start_lr over
    warmup_steps, then constant, or a decay to final_lr over the last decay_steps. weight decay: constant, or
    a cosine to its end. momentum: linear from start to end.

    As released for V-JEPA and V-JEPA 2, lr and weight decay count the step that is taken, so that the
    schedule's last step has their end values; momentum counts the finished ones, so that the first step has
    its start.
    """
    optim, momentum = config.optim, config.target.momentum
    total = config.schedule_steps
    taken = step + 1
    lr = optim.lr
    if taken < optim.warmup_steps:
        lr = linear(optim.start_lr, optim.lr, taken / optim.warmup_steps)
    elif optim.final_lr is not None:
        length = total - optim.warmup_steps if optim.decay_steps is None else optim.decay_steps
        done = min(1.0, max(0.0, (taken - (total - length)) / max(1, length)))
        lr = (cosine if optim.decay == "cosine" else linear)(optim.lr, optim.final_lr, done)
    weight_decay = optim.weight_decay
    if optim.final_weight_decay is not None:
        weight_decay = cosine(weight_decay, optim.final_weight_decay, min(1.0, taken / total))
    return Knobs(lr, weight_decay, linear(momentum.start, momentum.end, min(1.0, step / total)))
