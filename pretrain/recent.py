"""The loss that is told of a run: on the terminal, in its result, in status, in a sweep and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

RECENT = 10  # logged losses that are averaged at most; that of a single step jumps
RECENT_SHARE = 0.1  # of the steps so far, which they lie in: the mean must not carry the run's begin


def recent_loss(lines: Sequence[Mapping[str, Any]], until: float | None = None) -> float | None:
    """Mean of the last logged losses that are finite, ten at most, of the last tenth of the steps.

    Where steps are logged seldom it is the last one alone. lines: of metrics.jsonl, in order; those without a
    loss do not count. until: no later step than this counts. None where no loss, or no mean, is finite.
    """
    logged = [
        (float(line["step"]), float(line["loss"]))
        for line in lines
        if (until is None or line["step"] <= until) and _is_finite(line.get("loss"))
    ]
    if not logged:
        return None
    begin = (1 - RECENT_SHARE) * logged[-1][0]
    losses = [loss for step, loss in logged[-RECENT:] if step > begin] or [logged[-1][1]]
    try:
        return math.fsum(losses) / len(losses)
    except OverflowError:  # losses that no run has, in a damaged file
        return None


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds, in a damaged file
        return False
