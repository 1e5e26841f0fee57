"""Histograms: counted with numpy, drawn as inline SVG in the page's own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

WIDTH, HEIGHT = 440, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 22, 42
NUM_BINS = 40
LEAST = 1.5  # height of a bar of one among thousands
CUT_ABOVE = 5  # a bar that many times as high as the next is cut off, or no other could be seen
LOG_TICKS = (
    (0.01, "10 ms"), (0.1, "0.1 s"), (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"),
    (36000, "10 h"), (360000, "100 h"),
)  # fmt: skip


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, of what is kept and what is left out, and how the axis reads.

    ticks: (value, text). threshold: a value drawn as a line, with its text. num_above: in the last bar though
    they lie above it.
    """

    title: str
    axis: str
    what: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    left_out: tuple[int, ...]
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False
    threshold: tuple[float, str] | None = None
    num_above: int = 0


def linear(
    title: str,
    axis: str,
    what: str,
    kept: Doubles,
    left_out: Doubles,
    *,
    low: float = 0.0,
    high: float | None = None,
    threshold: tuple[float, str] | None = None,
    is_upper_end_in: bool = False,
) -> Histogram:
    """high: None for where 99.5 % of the values end; those above it share the last bar.

    is_upper_end_in: whether a value between two bars counts in the lower one; a threshold that is passed only
    from above wants it so.
    """
    values = np.concatenate([kept, left_out])
    if high is None:
        seen = float(np.quantile(values, 0.995, method="inverted_cdf")) if len(values) else 1.0
        seen = max(seen, 1.25 * threshold[0] if threshold else 0.0, low + 1e-6)
        step = _nice(seen - low)
        high = low + step * math.ceil((seen - low) / step - 1e-9)
    edges = np.linspace(low, high, NUM_BINS + 1)
    step = _nice(high - low)
    marks = low + step * np.arange(math.floor((high - low) / step + 1e-9) + 1)
    ticks = tuple((float(mark), f"{round(float(mark), 9):g}") for mark in marks)
    above = int(np.count_nonzero(values > high))
    return Histogram(
        title,
        axis,
        what,
        *_count(edges, kept, left_out, is_upper_end_in),
        ticks,
        threshold=threshold,
        num_above=above,
    )


def logarithmic(title: str, axis: str, what: str, kept: Doubles, left_out: Doubles) -> Histogram:
    """Of values in seconds above 0."""
    values = np.concatenate([kept, left_out])
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    low, high = max(low, 1e-3) / 1.25, max(high, 2e-3) * 1.25
    edges = np.geomspace(low, high, NUM_BINS + 1)
    ticks = tuple((value, text) for value, text in LOG_TICKS if low <= value <= high)
    return Histogram(title, axis, what, *_count(edges, kept, left_out), ticks, is_log=True)


def _count(
    edges: Doubles, kept: Doubles, left_out: Doubles, is_upper_end_in: bool = False
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    side: Literal["left", "right"] = "left" if is_upper_end_in else "right"

    def count(values: Doubles) -> tuple[int, ...]:
        bins = np.clip(np.searchsorted(edges, values, side) - 1, 0, len(edges) - 2)
        return tuple(np.bincount(bins, minlength=len(edges) - 1).tolist())

    return tuple(edges.tolist()), count(kept), count(left_out)


def _nice(length: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a length into four to ten."""
    rough = length / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)


def draw(histogram: Histogram) -> str:
    """The histogram as an <svg>; bars of what is kept below those of what is left out."""
    totals = [a + b for a, b in zip(histogram.kept, histogram.left_out, strict=True)]
    highest, second = ([*sorted(totals, reverse=True), 0, 0])[:2]
    is_cut = second > 0 and highest > CUT_ABOVE * second
    top = _round_up(second * 1.5 if is_cut else highest)
    parts = [_grid(top), _ticks(histogram), _bars(histogram, totals, top)]
    if histogram.threshold is not None:
        parts.append(_threshold(histogram, histogram.threshold))
    words = f"{histogram.title}: {sum(totals):,} {histogram.what}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def _x(histogram: Histogram, value: float) -> float:
    low, high = histogram.edges[0], histogram.edges[-1]
    value = min(max(value, low), high)
    if histogram.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)


def _y(count: float, top: int) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, count / top)


def _bars(histogram: Histogram, totals: Sequence[int], top: int) -> str:
    parts = []
    for k, total in enumerate(totals):
        if not total:
            continue
        left, right = (_x(histogram, histogram.edges[k + side]) for side in (0, 1))
        width = max(1.0, right - left - 0.8)
        words = f"{_value(histogram, k)} to {_value(histogram, k + 1)}: {histogram.kept[k]:,} kept"
        words += f", {histogram.left_out[k]:,} left out" if histogram.left_out[k] else ""
        parts.append(f"<g><title>{html.escape(words)}</title>")
        base = float(HEIGHT - BOTTOM)
        for name, count, height in (
            ("kept", histogram.kept[k], histogram.kept[k]),
            ("out", histogram.left_out[k], total),
        ):
            if count:
                y = min(_y(height, top), base - LEAST)
                parts.append(
                    f'<rect class="{name}" x="{left:.1f}" y="{y:.1f}" '
                    f'width="{width:.1f}" height="{base - y:.1f}"/>'
                )
                base = y
        parts.append("</g>")
        if total > top:
            parts.append(_cut(left, width, f"{total:,}"))
    return "".join(parts)


def _cut(left: float, width: float, words: str) -> str:
    """A break through a bar that is higher than the axis, and its number above."""
    y = TOP + 9
    end = left + width
    points = f"{left - 2:.1f},{y + 3} {end + 2:.1f},{y - 3} {end + 2:.1f},{y} {left - 2:.1f},{y + 6}"
    is_right = left > WIDTH / 2
    anchor, x = ("end", end) if is_right else ("start", left)
    return (
        f'<polygon class="page" points="{points}"/>'
        f'<text x="{x:.1f}" y="{TOP - 5}" text-anchor="{anchor}" class="strong">{html.escape(words)}</text>'
    )


def _value(histogram: Histogram, edge: int) -> str:
    return f"{histogram.edges[edge]:.3g}{' s' if histogram.is_log else ''}"


def _grid(top: int) -> str:
    lines = []
    for count in (0, top // 2, top) if top % 2 == 0 else (0, top):
        y = _y(count, top)
        lines.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_count(count)}</text>'
        )
    return "".join(lines)


def _ticks(histogram: Histogram) -> str:
    y = HEIGHT - BOTTOM
    marks = "".join(
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>'
        f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{html.escape(text)}</text>'
        for x, text in ((_x(histogram, value), text) for value, text in histogram.ticks)
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    axis = (
        f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(histogram.axis)}</text>'
    )
    corner = f'<text x="{WIDTH - RIGHT}" y="{TOP - 5}" text-anchor="end">{html.escape(histogram.what)}</text>'
    return marks + axis + corner


def _threshold(histogram: Histogram, threshold: tuple[float, str]) -> str:
    x = _x(histogram, threshold[0])
    is_right = x > WIDTH / 2
    anchor, gap = ("end", -5) if is_right else ("start", 5)
    return (
        f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="threshold" x="{x + gap:.1f}" y="{TOP + 22}" text-anchor="{anchor}">'
        f"{html.escape(threshold[1])}</text>"
    )


def _round_up(count: float) -> int:
    """The next number of one digit and zeros, even where it can be."""
    if count <= 2:
        return 2
    power = 10 ** math.floor(math.log10(count))
    return int(next(power * times for times in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if power * times >= count))


def short_count(count: int) -> str:
    """1,200 as 1.2k: for axes."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
