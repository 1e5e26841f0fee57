"""Long curves made short without a lie: the mean of every span, and the lowest and highest beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_POINTS = 1200  # of a curve that is drawn as it is
SPANS = 400  # of a longer one: more than a figure of one column has pixels


@dataclass(frozen=True)
class Spans:
    """A curve in spans of equal length in steps: (S,) each; nan where a span holds nothing finite."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def in_spans(steps: Floats, values: Floats, count: int = SPANS) -> Spans:
    """Rising steps (N,) and their values (N,) in at most `count` spans; spans without a point are left out.

    A span stands at the mean of its steps, the first and the last one at the curve's own ends.
    """
    edges = np.linspace(steps[0], steps[-1], count + 1)[1:-1]
    span = np.searchsorted(edges, steps, side="right")
    starts = np.flatnonzero(np.diff(span, prepend=-1))
    finite = np.isfinite(values)
    number = np.add.reduceat(finite.astype(np.float64), starts)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts)
    is_empty = number == 0
    mean = np.where(is_empty, math.nan, total / np.maximum(number, 1))
    low = np.minimum.reduceat(np.where(finite, values, math.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -math.inf), starts)
    sizes = np.diff(np.append(starts, len(steps)))
    at = np.add.reduceat(steps, starts) / sizes
    at[0], at[-1] = steps[0], steps[-1]
    return Spans(at, mean, np.where(is_empty, math.nan, low), np.where(is_empty, math.nan, high))


def smoothed(values: Floats, share: float = 0.06) -> Floats:
    """Centred mean over a window of `share` of the points, narrower at the ends; gaps stay gaps."""
    half = int(len(values) * share / 2)
    out = np.full(len(values), math.nan)
    for place in np.flatnonzero(np.isfinite(values)).tolist():
        reach = min(half, place, len(values) - 1 - place)
        out[place] = np.nanmean(values[place - reach : place + reach + 1])
    return out
