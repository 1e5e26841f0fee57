"""What the figures of a run show: which metrics, as which curves, in which units. It draws nothing.

Shapes: N logged steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from pretrain.envelope import MOST_POINTS, SPANS, Floats, in_spans, smoothed

Metrics = Sequence[Mapping[str, Any]]
LARGEST = 1e100  # beyond any number of float32; sums and squares of what is smaller stay finite
STARTS = ("_start", "_untrained")  # ends of keys that hold a value before training; the second of older runs


@dataclass(frozen=True)
class Curve:
    """A line of a figure. colour: its place in COLOURS, None for the colour of the axes.

    steps, values (N,): a value that was not finite is nan, a gap. low, high (N,): a band around it.
    raw: what was smoothed. is_level: one value, drawn over all steps. num_logged: points it is made from.
    marker: of its points where they are few, in matplotlib's letters; what tells lines of one colour apart.
    """

    name: str
    steps: Floats
    values: Floats
    colour: int | None = 0
    is_dashed: bool = False
    is_level: bool = False
    low: Floats | None = None
    high: Floats | None = None
    raw: Floats | None = None
    num_logged: int = 0
    marker: str = "o"

    @property
    def is_in_spans(self) -> bool:
        return self.num_logged > MOST_POINTS

    @property
    def ends(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The first and the last (step, value) that are finite."""
        there = np.flatnonzero(np.isfinite(self.values))
        if not there.size:
            return None
        first, last = int(there[0]), int(there[-1])
        return (
            (float(self.steps[first]), float(self.values[first])),
            (float(self.steps[last]), float(self.values[last])),
        )


@dataclass(frozen=True)
class Axes:
    """One set of axes with its curves. at_least: where the axes end, though a curve go below."""

    unit: str
    curves: tuple[Curve, ...]
    percent: bool = False
    from_zero: bool = True
    log: bool = False
    at_least: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure: axes above one another, over the same steps, or over what `across` says.

    log_across: what is across, all above zero, stands as far apart as its ratios.
    """

    name: str
    title: str
    caption: str
    axes: tuple[Axes, ...]
    across: str = "step"
    log_across: bool = False

    @property
    def alt(self) -> str:
        """The figure in words, for those who do not see it: where every curve begins and ends."""
        told = []
        for axes in self.axes:
            for curve in axes.curves:
                ends = curve.ends
                if ends is None:
                    continue
                (begin, first), (end, last) = ends
                shown = [f"{value:.1%}" if axes.percent else f"{value:.3g}" for value in (first, last)]
                name = curve.name if curve.name == axes.unit else f"{curve.name} ({axes.unit})"
                if curve.is_level or begin == end:
                    told.append(f"{name}: {shown[1]}")
                else:
                    at = f"{self.across} {begin:,.4g}", f"{self.across} {end:,.4g}"
                    if self.across == "step":
                        at = f"step {begin:,.0f}", f"step {end:,.0f}"
                    told.append(f"{name}: {shown[0]} at {at[0]}, {shown[1]} at {at[1]}")
        return f"{self.title}. {'; '.join(told)}."


@dataclass(frozen=True)
class Panel:
    """What one set of axes shows of a run's metrics. lines: keys of metrics, and what they are called.

    levels: keys without their end, whose value before training is a dashed level.
    references: keys of what curves are compared with, dashed in the colour of the axes.
    """

    unit: str
    lines: dict[str, str]
    levels: tuple[str, ...] = ()
    references: dict[str, str] | None = None
    percent: bool = False
    from_zero: bool = True
    smooth: bool = False
    log: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Plate:
    """A figure as it is laid out for any run."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


THREE = ("target", "context", "prediction")


def _of_features(what: str, names: Sequence[str] = THREE) -> dict[str, str]:
    return {f"health/{name}_{what}": name for name in names}


PLATES = (
    Plate(
        "loss",
        "Loss",
        "What is trained on. It is a proxy only: it can fall while features collapse, and rise while they "
        "improve.",
        (Panel("loss", {"loss": "loss"}, smooth=True, from_zero=False),),
    ),
    Plate(
        "trivial",
        "Loss beside trivial answers",
        "Dashed, the losses of two answers that need no learning: the mean of all tokens, and a copy of the "
        "nearest token that is seen. A loss not below them has learned nothing.",
        (
            Panel(
                "loss",
                {"health/loss_prediction": "prediction"},
                references={"health/loss_mean_token": "mean token", "health/loss_copy": "copy"},
                from_zero=False,
            ),
        ),
    ),
    Plate("loss-parts", "Parts of the loss", "What the loss is made of.", (Panel("loss", {}, smooth=True),)),
    Plate(
        "spread",
        "Feature spread",
        "Standard deviation of features across clips at fixed token positions. Near zero beside the dashed "
        "level, features have collapsed: every clip gets nearly the same.",
        (Panel("std across clips", _of_features("std"), levels=("std",)),),
    ),
    Plate(
        "rankme",
        "RankMe",
        "Effective number of dimensions in use. It ignores scale: read it beside the spread, never alone.",
        (Panel("dimensions", _of_features("rankme", THREE[:2]), levels=("rankme",)),),
    ),
    Plate(
        "effective-rank",
        "Effective rank",
        "Effective number of dimensions that the features vary in, around their mean. It ignores scale too.",
        (Panel("dimensions", _of_features("effective_rank"), levels=("effective_rank",)),),
    ),
    Plate(
        "correlation",
        "Correlation of dimensions",
        "Of two different dimensions, root mean square. Near 1, dimensions repeat one another.",
        (Panel("correlation", _of_features("correlation"), levels=("correlation",)),),
    ),
    Plate(
        "alignment",
        "Prediction and target",
        "Mean cosine of the predicted and the true features, and the share of the targets' variance that "
        "the prediction explains. The cosine rises in a collapse too: read it beside the spread.",
        (
            Panel("cosine", {"health/alignment": "alignment"}, from_zero=False),
            Panel("explained", {"health/explained": "explained"}, from_zero=False),
        ),
    ),
    Plate(
        "throughput",
        "Throughput and waiting",
        "Clips a second over all ranks, and the share of the time that training waited for data.",
        (
            Panel("clips/s", {"perf/clips_per_s": "clips/s"}, smooth=True),
            Panel("wait for data", {"data/wait_share": "waiting"}, percent=True, smooth=True),
        ),
    ),
    Plate(
        "compute",
        "Model throughput",
        "Floating point operations of the model a second and rank, and their share of the device's peak.",
        (
            Panel("TFLOP/s", {"perf/tflops": "TFLOP/s"}, smooth=True),
            Panel("of peak", {"perf/mfu": "MFU"}, percent=True, smooth=True),
        ),
    ),
    Plate(
        "memory",
        "Memory",
        "What a rank's process holds, its loader workers, and its device: of the rank that holds most.",
        (
            Panel(
                "GB",
                {
                    "system/host_memory_bytes": "rank",
                    "system/loader_memory_bytes": "loaders",
                    "system/gpu_memory_bytes": "device",
                },
                scale=1e9,
            ),
        ),
    ),
    Plate(
        "schedule",
        "Schedules",
        "Learning rate, and momentum of the target's moving average.",
        (
            Panel("learning rate", {"optim/lr": "lr"}),
            Panel("momentum", {"optim/momentum": "momentum"}, from_zero=False),
        ),
    ),
    Plate(
        "gradients",
        "Gradient norm",
        "Before clipping: of all weights, and where they were measured of encoder and predictor alone.",
        (
            Panel(
                "gradient norm",
                {
                    "optim/grad_norm": "all",
                    "optim/grad_norm_encoder": "encoder",
                    "optim/grad_norm_predictor": "predictor",
                },
                smooth=True,
                log=True,
            ),
        ),
    ),
    Plate(
        "weights",
        "Weights and updates",
        "Norm of the weights, and of what one step changes in them.",
        (
            Panel(
                "weight norm",
                {"optim/param_norm_encoder": "encoder", "optim/param_norm_predictor": "predictor"},
            ),
            Panel(
                "update norm",
                {"optim/update_norm_encoder": "encoder", "optim/update_norm_predictor": "predictor"},
                log=True,
            ),
        ),
    ),
    Plate(
        "ema-distance",
        "Target and context encoder",
        "How far the target is from the encoder that it follows, as a share of that encoder's norm.",
        (Panel("distance", {"health/ema_distance": "distance"}, percent=True),),
    ),
)


def points(metrics: Metrics, key: str) -> tuple[Floats, Floats]:
    """Steps and values of a metric (N,); one that was not finite is nan, words and lists are left out."""
    rows = [
        (line["step"], line[key] if is_finite(line[key]) else math.nan)
        for line in metrics
        if key in line and (line[key] is None or _is_number(line[key]))
    ]
    found = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def curve_of(
    name: str,
    steps: Floats,
    values: Floats,
    colour: int | None,
    *,
    smooth: bool,
    is_dashed: bool = False,
    num_spans: int = SPANS,
) -> Curve:
    """A curve of few points as they are, of many smoothed, of very many in spans with a band."""
    plain = Curve(name, steps, values, colour, is_dashed, num_logged=len(steps))
    if plain.is_in_spans:
        spans = in_spans(steps, values, num_spans)
        return replace(plain, steps=spans.steps, values=spans.mean, low=spans.low, high=spans.high)
    if smooth and len(steps) > 12:
        return replace(plain, values=smoothed(values), raw=values)
    return plain


def value_at_start(metrics: Metrics, key: str) -> float | None:
    """What a metric was before training, as it was written down at the first look, also by older runs."""
    for end in STARTS:
        for line in metrics:
            found = line.get(key + end)
            if is_finite(found):
                return float(found)
    return None


def judged_features(metrics: Metrics, *, is_frozen: bool = False) -> str:
    """Whose spread a run is judged by: the target's where it is there and moves, else the context's.

    is_frozen: the target never moves, so it cannot collapse.
    """
    named = {key for line in metrics for key in line if key.startswith("health/") and "_std" in key}
    starts = {key.partition("_std_")[0] for key in named if key.endswith(("_std_start", "_std_untrained"))}
    if len(starts) == 1:  # a run writes down the start of those by which it is judged
        return starts.pop().removeprefix("health/")
    order = THREE[1:] if is_frozen else THREE
    return next((name for name in order if f"health/{name}_std" in named), "target")


def figures_of(metrics: Metrics, *, judged: str = "target", start: str = "untrained") -> list[Figure]:
    """The figures that have any point. judged: whose value before training is shown; start: its name."""
    found = []
    for plate in PLATES:
        panels = plate.panels
        if plate.name == "loss-parts":
            panels = tuple(_with_parts(panel, metrics) for panel in panels)
        axes = [_axes(panel, metrics, judged, start) for panel in panels]
        kept = tuple(each for each in axes if each.curves)
        if kept:
            found.append(Figure(plate.name, plate.title, plate.caption + said_of_spans(kept), kept))
    return found


def _axes(panel: Panel, metrics: Metrics, judged: str, start: str) -> Axes:
    curves: list[Curve] = []
    for number, (key, name) in enumerate(panel.lines.items()):
        steps, values = points(metrics, key)
        if np.isfinite(values).any():
            curves.append(curve_of(name, steps, values / panel.scale, number, smooth=panel.smooth))
    for key, name in (panel.references or {}).items() if curves else ():
        steps, values = points(metrics, key)
        if np.isfinite(values).any():
            curves.append(curve_of(name, steps, values, None, smooth=False, is_dashed=True))
    for what in panel.levels if curves else ():
        level = value_at_start(metrics, f"health/{judged}_{what}")
        if level is not None:
            ends = np.array([metrics[0]["step"], metrics[-1]["step"]], dtype=np.float64)
            values = np.full(2, level / panel.scale)
            curves.append(Curve(start, ends, values, None, is_dashed=True, is_level=True))
    return Axes(panel.unit, tuple(curves), panel.percent, panel.from_zero, panel.log)


def _with_parts(panel: Panel, metrics: Metrics) -> Panel:
    """A line for each part of the loss, found by name, if there are several."""
    kinds = sorted({key for line in metrics for key in line if key.startswith("loss/")})
    names = {key: _part(key.removeprefix("loss/")) for key in kinds}
    return replace(panel, lines=names if len(names) > 1 else {}, from_zero=False)


def _part(name: str) -> str:
    kind = name.removeprefix("mask")
    return f"masks {int(kind) + 1}" if kind.isdecimal() else name.replace("_", " ")


def said_of_spans(axes: Sequence[Axes]) -> str:
    """What a reader has to know of a curve that is not drawn point by point."""
    most = max((curve.num_logged for each in axes for curve in each.curves), default=0)
    if most <= MOST_POINTS:
        return ""
    return f" Drawn from {most:,} logged steps: means of spans, in a band from the lowest to the highest."


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that can be drawn, compared and summed."""
    return _is_number(value) and -LARGEST <= value <= LARGEST


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
