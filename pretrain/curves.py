"""Curves of a run as SVG: the only file that imports matplotlib.

Axes are mid-tone and the background is clear, so that a figure reads on light and on dark pages; words stay
words, so that a page can set them in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXIS = "#7f7f7f"  # a page may replace it by its own text colour
COLOURS = ("#3d85c6", "#dd7e2b", "#2f9e6e", "#a56fd8", "#c2528b")


@dataclass(frozen=True)
class Picture:
    """A picture in the run's folder, and what to say under it."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Panel:
    """One set of axes: which metrics, what they are called in the figure, and its vertical axis."""

    unit: str
    lines: dict[str, str]
    percent: bool = False
    from_zero: bool = True
    smooth: bool = False
    log: bool = False


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


FIGURES = (
    Figure(
        "loss",
        "Loss",
        "What is trained on, and what it is made of. It is a proxy only: it can fall while features "
        "collapse, and rise while they improve.",
        (Panel("loss", {"loss": "loss"}, smooth=True, from_zero=False),),
    ),
    Figure(
        "spread",
        "Feature spread",
        "Standard deviation of features across clips at fixed token positions. Near zero beside the dashed "
        "untrained encoder, features have collapsed.",
        (
            Panel(
                "std across clips",
                {
                    "health/target_std": "target",
                    "health/context_std": "context",
                    "health/prediction_std": "prediction",
                    "health/target_std_untrained": "untrained",
                    "health/context_std_untrained": "untrained",
                },
            ),
        ),
    ),
    Figure(
        "rankme",
        "RankMe",
        "Effective number of dimensions in use. It ignores scale: read it beside the spread, never alone.",
        (
            Panel(
                "dimensions",
                {
                    "health/target_rankme": "target",
                    "health/context_rankme": "context",
                    "health/target_rankme_untrained": "untrained",
                    "health/context_rankme_untrained": "untrained",
                },
            ),
        ),
    ),
    Figure(
        "throughput",
        "Throughput and waiting",
        "Clips a second over all ranks, and the share of the time that training waited for data.",
        (
            Panel("clips/s", {"perf/clips_per_s": "clips/s"}),
            Panel("wait for data", {"data/wait_share": "waiting"}, percent=True),
        ),
    ),
    Figure(
        "schedule",
        "Schedules",
        "Learning rate, and momentum of the target's moving average.",
        (
            Panel("learning rate", {"optim/lr": "lr"}),
            Panel("momentum", {"optim/momentum": "momentum"}, from_zero=False),
        ),
    ),
    Figure(
        "gradients",
        "Gradient norm",
        "Global norm before clipping.",
        (Panel("norm", {"optim/grad_norm": "gradient norm"}, smooth=True, log=True),),
    ),
)


def draw_curves(metrics: Sequence[dict[str, Any]], folder: Path) -> list[Picture]:
    """An SVG for each figure that has any point; kinds of loss are found by their name."""
    drawn = []
    for figure in FIGURES:
        panels = [_with_kinds(panel, metrics) for panel in figure.panels]
        panels = [panel for panel in panels if any(_points(metrics, key)[0].size for key in panel.lines)]
        if panels:
            path = folder / f"{figure.name}.svg"
            _draw_figure(path, panels, metrics)
            drawn.append(Picture(path, figure.title, figure.caption))
    return drawn


def _with_kinds(panel: Panel, metrics: Sequence[dict[str, Any]]) -> Panel:
    """A loss panel gets a line for each part, if there are several."""
    if "loss" not in panel.lines:
        return panel
    kinds = sorted({key for line in metrics for key in line if key.startswith("loss/")})
    if len(kinds) < 2:
        return panel
    names = {key: _part(key.removeprefix("loss/")) for key in kinds}
    are_masks = all(key.startswith("loss/mask") for key in kinds)
    return Panel(panel.unit, {**names, "loss": "mean" if are_masks else "loss"}, smooth=True, from_zero=False)


def _part(name: str) -> str:
    kind = name.removeprefix("mask")
    return f"masks {int(kind) + 1}" if kind.isdecimal() else name.replace("_", " ")


def _points(metrics: Sequence[dict[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of a metric; a value that was not finite is a gap in the line."""
    kinds = (int, float, type(None))
    rows = [(line["step"], line[key]) for line in metrics if isinstance(line.get(key, ""), kinds)]
    steps = np.array([step for step, _ in rows], dtype=np.float64)
    return steps, np.array([math.nan if value is None else value for _, value in rows], dtype=np.float64)


def smoothed(values: NDArray[np.float64], share: float = 0.06) -> NDArray[np.float64]:
    """Centred mean over a window of `share` of the points, narrower at the ends; gaps stay gaps."""
    half = int(len(values) * share / 2)
    out = np.full(len(values), math.nan)
    for place in np.flatnonzero(np.isfinite(values)).tolist():
        reach = min(half, place, len(values) - 1 - place)
        out[place] = np.nanmean(values[place - reach : place + reach + 1])
    return out


def _draw_figure(path: Path, panels: Sequence[Panel], metrics: Sequence[dict[str, Any]]) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.name,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": AXIS,
        "axes.edgecolor": AXIS,
        "axes.labelcolor": AXIS,
        "xtick.color": AXIS,
        "ytick.color": AXIS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "path.simplify_threshold": 0.5,
    }
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(5.6, 2.9 if len(panels) == 1 else 3.6), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, metrics)
            ax.set_ylabel(panel.unit)
            ax.yaxis.set_major_locator(MaxNLocator(4)) if not panel.log else None
            if panel.percent:
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        canvas.savefig(
            path,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )


def _draw_panel(ax: Any, panel: Panel, metrics: Sequence[dict[str, Any]]) -> None:
    """Lines with their names at their ends; the untrained encoder is a dashed level over the whole run."""
    ends: list[tuple[float, str, str]] = []
    last = max(line["step"] for line in metrics)
    first = min(line["step"] for line in metrics)
    for number, (key, name) in enumerate(panel.lines.items()):
        steps, values = _points(metrics, key)
        finite = np.flatnonzero(np.isfinite(values))
        if not finite.size:
            continue
        colour = COLOURS[number % len(COLOURS)]
        if name == "untrained":
            level = values[finite[0]]
            ax.plot([first, last], [level, level], color=AXIS, lw=1.2, ls=(0, (4, 3)))
            ends.append((level, name, AXIS))
            continue
        few = len(steps) <= 12
        if panel.smooth and not few:
            ax.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
            values = smoothed(values)
        ax.plot(steps, values, color=colour, lw=1.6, marker="o" if few else None, ms=3.5)
        ends.append((float(values[finite[-1]]), name, colour))
    if panel.log:
        ax.set_yscale("log")
    elif panel.percent:
        ax.set_ylim(0, max(0.05, ax.get_ylim()[1]))
    elif panel.from_zero and ax.get_ylim()[0] > 0:
        ax.set_ylim(bottom=0)
    ax.grid(axis="y", color=AXIS, alpha=0.2, lw=0.7)
    if len(ends) > 1:
        _name_lines(ax, ends)


def _name_lines(ax: Any, ends: list[tuple[float, str, str]]) -> None:
    """Each line's name right of the axes at its last value, moved apart where two would touch."""
    low, high = ax.get_ylim()
    heights = apart([(value - low) / (high - low) for value, _, _ in sorted(ends)])
    for height, (_, name, colour) in zip(heights, sorted(ends), strict=True):
        ax.text(1.015, height, name, transform=ax.transAxes, color=colour, va="center", fontsize=10)


def apart(heights: Sequence[float], gap: float = 0.1) -> list[float]:
    """Ascending heights moved up until none is within `gap` of the one below, then down to stay below 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    for place in reversed(range(len(moved))):
        ceiling = 1.0 if place == len(moved) - 1 else moved[place + 1] - gap
        moved[place] = min(moved[place], ceiling)
    return moved
