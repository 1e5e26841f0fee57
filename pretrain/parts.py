"""The parts of a training step by name, marked where they are done, so that a profile can tell them apart.

A mark costs a call and a look at one variable (0.1 µs) while nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import ParamSpec, TypeVar

from data_pipeline.errors import UsageError
from pretrain.config import Plan

P = ParamSpec("P")
T = TypeVar("T")

WAIT, COPY, TARGET = "waiting for data", "copy to the GPU", "target encoder"
CONTEXT, PREDICTOR, LOSS = "context encoder", "predictor", "loss"
BACKWARD, OPTIMIZER, AVERAGE = "backward", "optimizer", "moving average"
WATCH, CHECKPOINT = "watch, health, tracker", "checkpoint"
PARTS = (WAIT, COPY, TARGET, CONTEXT, PREDICTOR, LOSS, BACKWARD, OPTIMIZER, AVERAGE, WATCH, CHECKPOINT)

WARM_UP = 3  # steps before the first that is recorded: compiling, caches, the profiler's own start
MOST_FORWARDS = 100  # of a recording, all its micro-batches together

Record = Callable[[str], AbstractContextManager[object]]
_record: Record | None = None


def record_with(record: Record | None) -> None:
    """Put what `record` gives around each marked call from now on; None: nothing."""
    global _record
    _record = record


def marked(part: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function whose calls belong to that part of a step; of marks within marks the inner one counts."""

    def decorate(work: Callable[P, T]) -> Callable[P, T]:
        @wraps(work)
        def do(*args: P.args, **kwargs: P.kwargs) -> T:
            if _record is None:
                return work(*args, **kwargs)
            with _record(part):
                return work(*args, **kwargs)

        return do

    return decorate


def check_profile(num_steps: int | None, plan: Plan) -> None:
    """Whether so many steps of this run can be recorded. Raises: UsageError."""
    if num_steps is None:
        return
    if num_steps < 1:
        raise UsageError(f"--profile {num_steps}: give the number of steps to record, 1 or more, such as 5")
    forwards, most = plan.micro_batches, MOST_FORWARDS // plan.micro_batches
    if num_steps > most:
        each = "" if forwards == 1 else f", and a step here has {forwards}"
        advice = (
            f"try --profile {min(5, most)}" if most else "give a smaller train.global_batch, or more ranks"
        )
        raise UsageError(
            f"--profile {num_steps}: a trace is kept in memory and takes some MB a micro-batch, so that at "
            f"most {MOST_FORWARDS} micro-batches are recorded{each}; {advice}"
        )
    if WARM_UP + num_steps > plan.steps:
        raise UsageError(
            f"--profile {num_steps}: steps are recorded after the first {WARM_UP}, and train.steps is "
            f"{plan.steps}; give train.steps={WARM_UP + num_steps} or more"
        )
