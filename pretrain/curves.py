"""Figures as SVG and PDF, as wide as a column of a paper. This file and maps.py alone import matplotlib.

Axes are mid-tone and the background is clear, so that a figure reads on light and on dark pages; words stay
words, so that a page can set them in its own type. For paper, `ink` is dark.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.storage import write_whole
from pretrain.envelope import smoothed as smoothed
from pretrain.figures import Axes, Curve, Figure, Metrics, figures_of

AXIS = "#7f7f7f"  # a page may replace it by its own text colour
INK = "#20242a"  # of figures on white
# Told apart with every kind of colour blindness, and at least 4.5 : 1 on white: names are written in them.
COLOURS = ("#0b66ad", "#b54708", "#00734f", "#6d28d9", "#0b7285", "#a3262a")
WIDTH_IN = 3.5  # a column
ROW_IN = 1.45  # of one set of axes where there are several
MOST_NAMED = 5  # lines that have their names at their ends; of more, names stand above
LEGEND_IN = 0.6
DASH, DOTS = (0, (4, 2.5)), (0, (1, 1.3))


@dataclass(frozen=True)
class Picture:
    """A picture in the run's folder, what to say under it, and what it shows in words."""

    path: Path
    title: str
    caption: str
    alt: str = ""


def draw_curves(
    metrics: Metrics, folder: Path, *, judged: str = "target", start: str = "untrained"
) -> list[Picture]:
    """An SVG for each figure of a run that has any point. judged, start: see figures_of."""
    return draw_figures(figures_of(metrics, judged=judged, start=start), folder)


def draw_figures(figures: Sequence[Figure], folder: Path) -> list[Picture]:
    """An SVG of each, for a page."""
    drawn = []
    for figure in figures:
        path = folder / f"{figure.name}.svg"
        draw(figure, path)
        drawn.append(Picture(path, figure.title, figure.caption, figure.alt))
    return drawn


def draw(figure: Figure, path: Path, ink: str = AXIS) -> None:
    """Write a figure as its file's ending says: .svg, or .pdf with its fonts inside; whole or not at all.

    Raises: OSError.
    """
    from matplotlib.ticker import MaxNLocator

    rows = len(figure.axes)
    has_legend = max(len(axes.curves) for axes in figure.axes) > MOST_NAMED
    height = (2.05 if rows == 1 else ROW_IN * rows) + (LEGEND_IN if has_legend else 0.0)
    with new_canvas(path, height, ink) as canvas:
        every = canvas.subplots(rows, sharex=True, squeeze=False)[:, 0]
        for ax, axes in zip(every, figure.axes, strict=True):
            _draw_axes(ax, axes, ink, has_names=not has_legend)
        if has_legend:
            lines = {line.get_label(): line for ax in every for line in ax.get_lines()}
            canvas.legend(
                lines.values(), lines.keys(), loc="outside upper left", ncols=2, frameon=False, fontsize=7
            )
        every[-1].set_xlabel(figure.across)
        if figure.across == "step":
            every[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
            every[-1].xaxis.set_major_formatter(_step)
        if figure.log_across:
            places = {float(step) for axes in figure.axes for curve in axes.curves for step in curve.steps}
            every[-1].set_xscale("log")
            every[-1].set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
            every[-1].set_xticks([], minor=True)
        canvas.align_ylabels(every)


@contextmanager
def new_canvas(path: Path, height_in: float, ink: str) -> Iterator[Any]:
    """A matplotlib figure in the house's style, to be drawn on; written when the block ends without an error.

    Raises: OSError.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.name,
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "font.size": 8,
        "text.parse_math": False,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "path.simplify_threshold": 0.5,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # A name may have letters that matplotlib's font lacks; the page's own font may have them.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
        (FigureCanvasPdf if path.suffix == ".pdf" else FigureCanvasSVG)(canvas)
        yield canvas
        nothing = ("CreationDate", "Producer") if path.suffix == ".pdf" else ("Date", "Format", "Type")
        drawn = io.BytesIO()
        canvas.savefig(
            drawn, format=path.suffix[1:], transparent=True, metadata=dict.fromkeys(("Creator", *nothing))
        )
    write_whole(path, drawn.getvalue())


def _step(step: float, _: object) -> str:
    """Short, so that five fit a column: 800, 20k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= 10 * size or (abs(step) >= size and step % size == 0):
            return f"{step / size:.4g}{letter}"
    return f"{step:.0f}"


def _draw_axes(ax: Any, axes: Axes, ink: str, *, has_names: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

    for curve in axes.curves:
        _draw_curve(ax, curve, ink)
    ax.set_ylabel(axes.unit)
    ax.margins(x=0.02)
    if axes.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.get_major_formatter().set_powerlimits((-3, 5))
        low, high = ax.get_ylim()
        if axes.percent:
            ax.set_ylim(0, max(0.05, high))
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif axes.from_zero and low > 0:
            ax.set_ylim(bottom=0)
    if axes.at_least is not None and ax.get_ylim()[0] < axes.at_least:
        ax.set_ylim(bottom=axes.at_least)
    ax.grid(axis="y", color=ink, alpha=0.18, lw=0.5)
    ax.tick_params(width=0.6, length=2.5)
    if has_names and len(axes.curves) > 1:
        _name_lines(ax, axes.curves, ink)


def _draw_curve(ax: Any, curve: Curve, ink: str) -> None:
    colour = ink if curve.colour is None else COLOURS[curve.colour % len(COLOURS)]
    turn = (curve.colour or 0) // len(COLOURS)  # colours are used again, and lines are broken then
    look = {"color": colour, "ls": DASH if curve.is_dashed else ("-", DASH, DOTS)[min(turn, 2)]}
    if curve.raw is not None:
        ax.plot(curve.steps, curve.raw, lw=0.5, alpha=0.35, **look)
    if curve.low is not None:
        ax.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.2, lw=0)
    few = len(curve.steps) <= 12 and not curve.is_level
    ax.plot(
        curve.steps,
        curve.values,
        lw=0.9 if curve.is_dashed else 1.3,
        marker=curve.marker if few else None,
        ms=2.5 if curve.marker == "o" else 3.5,
        label=curve.name,
        **look,
    )


def _name_lines(ax: Any, curves: Sequence[Curve], ink: str) -> None:
    """Each line's name right of the axes at its last value, moved apart where two would touch."""
    import numpy as np

    low, high = (ax.transData.transform((0, limit))[1] for limit in ax.get_ylim())
    ends = []
    for number, curve in enumerate(curves):
        found = curve.ends
        if found is not None:
            height = (ax.transData.transform((0, found[1][1]))[1] - low) / (high - low)
            ends.append((height if np.isfinite(height) else 0.0, number, curve))
    ends.sort(key=lambda end: end[:2])
    gap = 0.105 if ax.get_subplotspec().get_gridspec().nrows == 1 else 0.17
    for height, (_, _, curve) in zip(apart([end[0] for end in ends], gap), ends, strict=True):
        colour = ink if curve.colour is None else COLOURS[curve.colour % len(COLOURS)]
        ax.text(1.02, height, curve.name, transform=ax.transAxes, color=colour, va="center")


def apart(heights: Sequence[float], gap: float = 0.1) -> list[float]:
    """Ascending heights moved up until none is within `gap` of the one below, then down to stay below 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    for place in reversed(range(len(moved))):
        ceiling = 1.0 if place == len(moved) - 1 else moved[place + 1] - gap
        moved[place] = min(moved[place], ceiling)
    return moved
