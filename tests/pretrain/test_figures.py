"""Figures: long curves are shortened without a lie, colours can be read, names and gaps stay."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import curves
from pretrain.envelope import MOST_POINTS, SPANS, in_spans, smoothed
from pretrain.figures import (
    Axes,
    Curve,
    Figure,
    figures_of,
    judged_features,
    points,
    value_at_start,
)
from pretrain.report.style import COLOURS_DARK, INKS_DARK, INKS_LIGHT, PAGE_DARK, PAGE_LIGHT

METRICS: list[dict[str, Any]] = [
    {
        "step": step,
        "loss": None if step == 30 else 1.0 / step,
        "loss/mask0": 1.1 / step,
        "loss/mask1": 0.9 / step,
        "optim/lr": 1e-3,
        "optim/momentum": 0.99,
        "perf/clips_per_s": 40.0 + step % 3,
        "data/wait_share": 0.01,
        "batch_digest": "abc",
    }
    | ({"health/target_std": 0.9, "health/target_std_untrained": 1.0} if step == 1 else {})
    for step in range(1, 41)
]


def test_spans_hold_every_value_between_their_lowest_and_highest() -> None:
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 5, 5000)).astype(float)
    values = rng.normal(size=5000)
    values[[10, 400, 4999]] = math.nan
    found = in_spans(steps, values, 50)
    assert len(found.steps) == 50
    assert (np.diff(found.steps) > 0).all()
    assert (found.steps[0], found.steps[-1]) == (steps[0], steps[-1])
    edges = np.linspace(steps[0], steps[-1], 51)
    for number in range(50):  # the slow way
        last = number == 49
        inside = (steps >= edges[number]) & (
            (steps <= edges[number + 1]) if last else (steps < edges[number + 1])
        )
        there = values[inside & np.isfinite(values)]
        assert found.low[number] == there.min()
        assert found.high[number] == there.max()
        assert found.mean[number] == pytest.approx(there.mean())


def test_spans_without_a_finite_value_are_gaps_and_without_a_point_are_left_out() -> None:
    steps = np.array([0.0, 1, 2, 3, 90, 99])
    values = np.array([1.0, 2, math.nan, math.nan, 5, 6])
    found = in_spans(steps, values, 50)
    assert len(found.steps) == 4
    assert np.isnan(found.mean[1])
    assert np.isnan(found.low[1])
    assert found.mean[0] == 1.5


def test_a_spike_in_a_long_run_is_still_seen_and_said() -> None:
    lines = [{"step": s, "loss": 9.0 if s == 41_234 else 1.0} for s in range(1, 100_001)]
    (figure,) = figures_of(lines)
    (curve,) = figure.axes[0].curves
    assert len(curve.steps) <= SPANS < MOST_POINTS
    assert curve.high is not None
    assert np.nanmax(curve.high) == 9.0
    assert "Drawn from 100,000 logged steps" in figure.caption


def test_words_lists_and_truth_values_are_no_points() -> None:
    rows = [
        {"step": 1, "a": "x"},
        {"step": 2, "a": [1]},
        {"step": 3, "a": True},
        {"step": 4, "a": 2},
        {"step": 5},
    ]
    steps, values = points([*rows, {"step": 6, "a": None}], "a")
    assert steps.tolist() == [4, 6]
    assert values[0] == 2
    assert np.isnan(values[1])


def test_the_value_before_training_is_found_under_its_old_name_and_its_new_one() -> None:
    assert value_at_start([{"step": 1, "k_untrained": 2.0}], "k") == 2.0
    assert value_at_start([{"step": 1, "k_untrained": 2.0, "k_start": 3.0}], "k") == 3.0
    assert value_at_start([{"step": 1}], "k") is None


def test_a_run_is_judged_by_what_can_collapse() -> None:
    both = {"step": 1, "health/target_std": 1.0, "health/context_std": 1.0}
    assert judged_features([both]) == "target"
    assert judged_features([both], is_frozen=True) == "context"
    assert judged_features([{"step": 1, "health/context_std": 1.0}]) == "context"
    assert judged_features([both | {"health/context_std_untrained": 1.0}]) == "context"
    assert judged_features([]) == "target"


def test_a_level_is_called_what_the_weights_were() -> None:
    lines = [{"step": s, "health/target_std": 1.0, "health/target_std_start": 1.0} for s in (1, 2)]
    names = [[c.name for c in f.axes[0].curves] for f in figures_of(lines, start="at the start")]
    assert names == [["target", "at the start"]]


def test_a_figure_says_in_words_where_its_curves_begin_and_end() -> None:
    figure = next(f for f in figures_of(METRICS) if f.name == "throughput")
    assert figure.alt == (
        "Throughput and waiting. clips/s: 41 at step 1, 41 at step 40; "
        "waiting (wait for data): 1.0% at step 1, 1.0% at step 40."
    )


def test_every_figure_is_svg_with_clear_ground_and_words(tmp_path: Path) -> None:
    drawn = curves.draw_curves(METRICS, tmp_path)
    assert [p.path.stem for p in drawn] == ["loss", "loss-parts", "spread", "throughput", "schedule"]
    for picture in drawn:
        root = ET.parse(picture.path).getroot()
        assert root.tag.endswith("svg")
        assert "<text" in picture.path.read_text()
        assert curves.AXIS in picture.path.read_text()
    assert ">masks 1<" in (tmp_path / "loss-parts.svg").read_text()


def test_a_name_with_dollars_and_letters_of_no_font_is_drawn_as_it_is(tmp_path: Path) -> None:
    found = figures_of([{"step": s, "loss/a$b^": s, "loss/視頻": s} for s in (1, 2)])
    (picture,) = curves.draw_figures(found, tmp_path)
    assert ">a$b^<" in picture.path.read_text()
    assert ">視頻<" in picture.path.read_text()


@pytest.mark.parametrize(("count", "across"), [(3, "step"), (7, "noise")])
def test_many_lines_are_named_once_above_and_few_at_their_ends(
    count: int, across: str, tmp_path: Path
) -> None:
    x = np.array([0.1, 0.4, 0.8])
    lines = tuple(Curve(f"line {n}", x, x * n, colour=n) for n in range(count))
    figure = Figure("f", "Title", "Caption", (Axes("a", lines), Axes("b", lines)), across)
    curves.draw(figure, tmp_path / "f.svg")
    words = [each.text for each in ET.parse(tmp_path / "f.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert across in words
    assert [words.count(f"line {n}") for n in range(count)] == [1 if count > 5 else 2] * count


def test_the_same_metrics_give_the_same_bytes(tmp_path: Path) -> None:
    figure = figures_of(METRICS)[0]
    for ending in ("svg", "pdf"):
        one, other = (tmp_path / which / f"loss.{ending}" for which in ("a", "b"))
        for path in (one, other):
            path.parent.mkdir(exist_ok=True)
            curves.draw(figure, path)
        assert one.read_bytes() == other.read_bytes()


def test_a_run_of_one_step_and_one_of_none_can_be_drawn(tmp_path: Path) -> None:
    assert curves.draw_curves(METRICS[:1], tmp_path)
    assert curves.draw_curves([], tmp_path) == []


def test_smoothing_keeps_gaps_and_ends() -> None:
    values = np.arange(100.0)
    values[50] = np.nan
    smooth = smoothed(values)
    assert np.isnan(smooth[50])
    assert smooth[0] == 0
    assert smooth[99] == 99
    assert smooth[20] == pytest.approx(20)


def test_names_of_lines_are_moved_apart_and_stay_inside() -> None:
    moved = curves.apart([0.2, 0.95, 0.97, 0.99])
    assert moved[0] == 0.2
    assert max(moved) <= 1
    assert min(b - a for a, b in itertools.pairwise(moved)) > 0.0999


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("colours", "grounds"),
    [
        (curves.COLOURS, (PAGE_LIGHT,)),
        (COLOURS_DARK, (PAGE_DARK,)),
        (
            [v for k, v in INKS_LIGHT.items() if k not in ("line", "page", "card")],
            (PAGE_LIGHT, INKS_LIGHT["card"]),
        ),
        (
            [v for k, v in INKS_DARK.items() if k not in ("line", "page", "card")],
            (PAGE_DARK, INKS_DARK["card"]),
        ),
    ],
    ids=["curves by day", "curves by night", "words by day", "words by night"],
)
def test_what_is_written_can_be_read(colours: list[str], grounds: tuple[str, ...]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground, colour in itertools.product(grounds, colours):
        assert contrast(colour, ground) >= 4.5, (colour, ground)


# Linear RGB to what a person without one kind of cones sees. Source: Viénot et al. 1999, in linear RGB.
BLINDNESS = {
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("kind", [None, *BLINDNESS])
@pytest.mark.parametrize("colours", [curves.COLOURS, COLOURS_DARK], ids=["day", "night"])
def test_colours_are_told_apart_by_everybody(colours: tuple[str, ...], kind: str | None) -> None:
    seen = [_lab(colour, kind) for colour in colours]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 12  # in CIE Lab, where 2.3 is just noticed


def _lab(colour: str, kind: str | None) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    if kind is not None:
        linear = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = (np.array(matrix) @ linear) / np.array([0.9505, 1.0, 1.089])
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
