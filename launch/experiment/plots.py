"""The figures of an experiment: a curve an arm, the mean over seeds and a band from lowest to highest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launch.experiment.config import PLACE, ExperimentConfig, Panel
from launch.experiment.measured import Series, series_of
from launch.experiment.runs import Cell
from launch.experiment.summary import UNTRAINED, Spread
from pretrain.curves import draw
from pretrain.figures import Axes, Curve, Figure

MOST_POINTS = 120
MARKS = ("o", "s", "^", "v", "D", "P", "x", "*", "<", ">")
Metrics = Mapping[Cell, Sequence[Mapping[str, Any]]]
KEYS = {"key", "beside"}  # of a panel: where its curves come from, which is not drawn
PointsOf = list[tuple[float, float]]
Drawn = dict[str, Any]
"""A figure as a results file keeps it: title, caption, across, panels of curves."""


def plots_of(
    experiment: ExperimentConfig,
    metrics: Mapping[str, Metrics],
    spreads: Sequence[Spread],
    evaluated: Mapping[Cell, Mapping[str, float]],
) -> list[Drawn]:
    """What is drawn, in numbers. metrics: of each stage's runs. evaluated: what the last's gave."""
    found = []
    last = list(experiment.stages)[-1]
    for plot in experiment.plots:
        arms = list(plot.arms or experiment.stages[plot.stage or last].arms)
        is_drawn = partial(_is_of, plot.level)
        if plot.over == "steps":
            across: str | None = "step"
            own = {cell: each for cell, each in metrics[plot.stage or last].items() if is_drawn(cell)}
            panels = [_over_steps(panel, own, arms) for panel in plot.panels]
        elif plot.over == "levels":
            across = experiment.axis
            panels = [_over_levels(panel, spreads, [*arms, UNTRAINED]) for panel in plot.panels]
        else:
            across = plot.across
            told = {cell: each for cell, each in evaluated.items() if is_drawn(cell)}
            panels = [_over_measures(panel, plot.at, told, arms) for panel in plot.panels]
        caption = caption_of(plot.caption, panels)
        drawn = {"title": plot.title, "caption": caption, "across": across, "panels": panels}
        found.append({**drawn, "log_across": plot.log_across})
    return found


def _is_of(level: float | None, cell: Cell) -> bool:
    return cell.level == level


def caption_of(caption: str, panels: Sequence[Drawn]) -> str:
    """With what is not drawn below it."""
    return " ".join(filter(None, [caption, *map(_below, panels)]))


def _below(panel: Drawn) -> str:
    """What lies under the axes' end, where something does."""
    lowest = min((value for curve in panel["curves"] for value in curve["low"]), default=math.inf)
    end = panel["at_least"]
    if end is None or lowest >= end:
        return ""
    return f"{panel['unit']}: what is below {end:g}, to {lowest:.2g}, is not drawn."


def _over_steps(panel: Panel, metrics: Metrics, arms: Sequence[str]) -> Drawn:
    curves = []
    for arm in arms:
        each = [series_of(lines, panel.key) for cell, lines in metrics.items() if cell.arm == arm]
        if curve := together(arm, [series for series in each if series]):
            curves.append(curve)
    return {**panel.model_dump(exclude=KEYS), "curves": curves}


def _over_measures(
    panel: Panel, at: Sequence[float], evaluated: Mapping[Cell, Mapping[str, float]], arms: Sequence[str]
) -> Drawn:
    """A curve an arm, and those beside, of all its runs; at the numbers of which a run gave something."""

    def points(arm: str, pattern: str) -> list[PointsOf]:
        every = [own for cell, own in evaluated.items() if cell.arm == arm]
        named = {number: pattern.replace(PLACE, f"{number:g}") for number in at}
        each = [[(number, own[key]) for number, key in named.items() if key in own] for own in every]
        return [found for found in each if found]

    curves = [together(arm, points(arm, panel.key)) for arm in arms]
    for name, pattern in panel.beside.items():
        curve = together(name, points(arms[0], pattern))
        curves.append(None if curve is None else {**curve, "is_beside": True})
    return {**panel.model_dump(exclude=KEYS), "curves": [each for each in curves if each is not None]}


def together(name: str, each: Sequence[Series] | Sequence[PointsOf]) -> Drawn | None:
    """The mean, lowest and highest of several series, at the steps or numbers that all of them have.

    runs: how many they are.
    """
    if not each:
        return None
    shared: list[float] = sorted(set.intersection(*({step for step, _ in series} for series in each)))
    if not shared:
        return None
    if len(shared) > MOST_POINTS:
        places = np.linspace(0, len(shared) - 1, MOST_POINTS).round().astype(int)
        shared = [shared[place] for place in places]
    table = np.array([[dict(series)[step] for step in shared] for series in each])
    return {**_curve(name, shared, table.mean(0), table.min(0), table.max(0)), "runs": len(each)}


def _over_levels(panel: Panel, spreads: Sequence[Spread], arms: Sequence[str]) -> Drawn:
    curves = []
    for arm in arms:
        own = [each for each in spreads if each.arm == arm and each.measure == panel.key]
        points = sorted((each.level, each) for each in own if each.level is not None)
        if points:
            levels = [level for level, _ in points]
            rows = [(each.mean, min(each.values), max(each.values)) for _, each in points]
            curves.append(_curve(arm, levels, *zip(*rows, strict=True)))
    return {**panel.model_dump(exclude=KEYS), "curves": curves}


def _curve(name: str, x: Sequence[float], *lines: Sequence[float]) -> Drawn:
    short = [[float(f"{value:.5g}") for value in line] for line in lines]
    return {"name": name, "x": list(x), **dict(zip(("mean", "low", "high"), short, strict=True))}


def draw_plots(plots: Sequence[Drawn], name: str, folder: Path) -> list[tuple[Path, Figure]]:
    """An SVG of each. Raises: OSError."""
    found = []
    for number, plot in enumerate(plots, start=1):
        path = folder / f"{name}-{number}.svg"
        figure = figure_of(plot, path.stem)
        draw(figure, path)
        found.append((path, figure))
    return found


def figure_of(plot: Drawn, name: str) -> Figure:
    axes = [
        Axes(
            panel["unit"],
            _drawn(panel["curves"]),
            percent=panel["percent"],
            log=panel["log"],
            from_zero=panel["from_zero"],
            at_least=panel["at_least"],
        )
        for panel in plot["panels"]
    ]
    return Figure(name, plot["title"], plot["caption"], tuple(axes), plot["across"], plot["log_across"])


def _drawn(curves: Sequence[Drawn]) -> tuple[Curve, ...]:
    """Arms in a colour each, others beside them in the colour of the axes; each with its own mark."""
    found = []
    for number, (curve, mark) in enumerate(zip(curves, itertools.cycle(MARKS), strict=False)):
        is_plain = curve.get("is_beside", False) or curve["name"] == UNTRAINED
        x, mean, low, high = (np.array(curve[key], dtype=float) for key in ("x", "mean", "low", "high"))
        found.append(
            Curve(
                curve["name"],
                x,
                mean,
                colour=None if is_plain else number,
                is_dashed=is_plain,
                low=low,
                high=high,
                marker=mark,
            )
        )
    return tuple(found)
