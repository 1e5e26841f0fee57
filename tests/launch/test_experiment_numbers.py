"""What is made of an experiment's numbers: measures, spreads, differences, tables, figures, what is kept."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import refusal
from launch.config import read_config, shipped_config
from launch.experiment import evaluate
from launch.experiment.command import Asked, read_experiment
from launch.experiment.config import ExperimentConfig, Measure, Panel, Plot
from launch.experiment.drawn_table import drawn_table
from launch.experiment.evaluate import asked_of, digest_of
from launch.experiment.maps import draw_all_maps, maps_of_arms
from launch.experiment.measured import (
    Evaluated,
    commits_of,
    keep_evaluation,
    kept_evaluation,
    measured,
    seconds_of,
    training_tflops,
    value_of,
)
from launch.experiment.plots import draw_plots, figure_of, plots_of, together
from launch.experiment.result import empty_panels
from launch.experiment.runs import Cell
from launch.experiment.summary import (
    UNTRAINED,
    Spread,
    all_tables,
    compared,
    grouped,
    markdown,
    rows_of,
    spreads_of,
)
from pretrain.config import RunConfig
from pretrain.flops import flops_a_clip
from pretrain.maps import Map, Maps
from tests.launch.sweeps import small_config, training  # noqa: F401  fixtures


def test_a_measure_is_the_last_first_lowest_or_share() -> None:
    lines = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": 2.0, "probe/trained/x": 0.7, "probe/untrained/x": 0.2},
    ]
    series = [(1, 4.0), (3, 1.0), (4, 2.0)]
    found = {at: value_of(series, at) for at in ("last", "first", "lowest", "share")}
    assert found == {"last": 2.0, "first": 4.0, "lowest": 1.0, "share": 0.5}
    assert value_of([], "last") is None and value_of([(1, 0.0)], "share") is None
    measures = [
        Measure(name="loss", key="loss"),
        Measure(name="x", key="probe/trained/x", untrained="probe/untrained/x"),
        Measure(name="there", key="rollout/1"),
        Measure(name="not there", key="rollout/2"),
    ]
    assert measured(measures, lines, {"rollout/1": 0.5}) == (
        {"loss": 2.0, "x": 0.7, "there": 0.5},
        {"x": 0.2},
    )


def test_a_measure_may_be_a_difference_or_a_share_of_two_numbers_of_one_run() -> None:
    lines = [{"step": 1, "loss": 3.0, "copy": 2.0}, {"step": 2, "loss": 1.0, "copy": 4.0, "dead": None}]
    measures = [
        Measure(name="less", key="copy", minus="loss"),
        Measure(name="share", key="loss", share_of="copy"),
        Measure(name="both", key="copy", minus="loss", share_of="asked"),
        Measure(name="of nothing", key="loss", share_of="zero"),
        Measure(name="of none", key="loss", minus="not there"),
        Measure(name="of what diverged", key="loss", minus="dead"),
    ]
    found, _ = measured(measures, lines, {"asked": 1.5, "zero": 0.0})
    assert found == {"less": 3.0, "share": 0.25, "both": 2.0}


def test_training_is_counted_over_all_steps_and_what_is_computed_again_is_not() -> None:
    def tflops(*changes: str) -> float:
        config = read_config(shipped_config("train/tiny-cpu.yaml"), changes, RunConfig)
        return training_tflops(config)

    plain = tflops()
    config = read_config(shipped_config("train/tiny-cpu.yaml"), [], RunConfig)
    assert plain == pytest.approx(flops_a_clip(config).model * 800 * 8 / 1e12, rel=1e-9)
    assert tflops("train.steps=1600") == pytest.approx(2 * plain)
    assert tflops("train.global_batch=16", "train.micro_batch=16") == pytest.approx(2 * plain, rel=0.02)
    for again in (["true"], ["auto", "strategy.activation_memory=4GB"]):
        assert tflops(*(f"strategy.activation_checkpointing={again[0]}", *again[1:])) == pytest.approx(plain)
    assert tflops("target.stop_gradient=false") > 1.3 * plain


def test_mean_spread_and_difference_are_those_of_numpy_and_of_the_t_table() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5), rng.normal(size=5)
    values = {Cell("a", None, n): {"x": a[n]} for n in range(5)} | {
        Cell("b", None, n): {"x": b[n]} for n in range(5)
    }
    untrained = {cell: {"x": 10.0 * cell.seed} for cell in values}
    spreads = {each.arm: each for each in spreads_of(values, untrained, ["a", "b"], ["x"], "a")}
    assert spreads["a"].mean == pytest.approx(a.mean()) and spreads["a"].sd == pytest.approx(a.std(ddof=1))
    assert spreads["a"].difference is None
    half = 2.776445 * (b - a).std(ddof=1) / math.sqrt(5)  # t of 4 degrees of freedom, 97.5 %
    assert spreads["b"].difference == pytest.approx((b - a).mean())
    assert spreads["b"].half == pytest.approx(half, rel=1e-3)
    before = np.arange(5) * 10.0
    assert spreads[UNTRAINED].values == tuple(before), "once a seed, not once an arm"
    assert spreads[UNTRAINED].difference == pytest.approx((before - a).mean())
    apart = 2.776445 * (before - a).std(ddof=1) / math.sqrt(5)
    assert spreads[UNTRAINED].half == pytest.approx(apart, rel=1e-3)
    rows = {row["arm"]: row for row in rows_of(list(spreads.values()), None, "a")}
    assert rows["b"]["reference"] == pytest.approx(a.mean()) and rows["b"]["n"] == 5


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 15, 16, 31, 60])
def test_an_interval_is_never_narrower_than_students(seeds: int) -> None:
    """Of differences 1, 0, 1, 0, … so that none is read from a table that it is itself made of."""
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    differences = [float(n % 2) for n in range(seeds)]
    _, half = compared(dict(enumerate(differences)), dict.fromkeys(range(seeds), 0.0))
    student = scipy.t.ppf(0.975, seeds - 1) * np.std(differences, ddof=1) / math.sqrt(seeds)
    assert half is not None
    assert student * (1 - 1e-3) <= half < 1.1 * student


def test_only_seeds_that_both_have_are_compared() -> None:
    assert compared({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.0, 1: 0.0}) == (
        1.5,
        pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2)),
    )
    assert compared({0: 1.0}, {0: 0.0}) == (None, None)


def test_a_table_a_level_with_a_star_where_an_arm_differs() -> None:
    values = {
        Cell(arm, level, seed): {"x": base + 0.01 * seed}
        for level in (0.1, 0.8)
        for arm, base in (("a", 0.0), ("b", 1.0 if level == 0.8 else 0.0))
        for seed in range(3)
    }
    table = markdown(spreads_of(values, {}, ["a", "b"], ["x"], "a"), {"x": 2}, "noise")
    assert table.splitlines() == [
        "noise 0.1:", "", "| | x | seeds |", "|---|---:|---:|",
        "| a | 0.01 ± 0.01 | 3 |", "| b | 0.01 ± 0.01 | 3 |", "",
        "noise 0.8:", "", "| | x | seeds |", "|---|---:|---:|",
        "| a | 0.01 ± 0.01 | 3 |", "| b | 1.01 ± 0.01* | 3 |",
    ]  # fmt: skip


def test_measures_of_a_group_are_a_table_of_their_own() -> None:
    groups = grouped(
        [
            {"name": "x", "digits": 2},
            {"name": "y", "digits": 1, "group": "Time"},
            {"name": "z", "digits": 0, "group": "Time"},
            {"name": "of no run", "digits": 0, "group": "Not shown"},
        ]
    )
    assert groups == {"": {"x": 2}, "Time": {"y": 1, "z": 0}, "Not shown": {"of no run": 0}}
    values = {Cell("a", None, 0): {"x": 1.0, "y": 2.0, "z": 3.0}, Cell("b", None, 0): {"x": 4.0}}
    found = all_tables(spreads_of(values, {}, ["a", "b"], ["x", "y", "z"], None), groups, None)
    assert found.splitlines() == [
        "| | x | seeds |", "|---|---:|---:|", "| a | 1.00 | 1 |", "| b | 4.00 | 1 |", "",
        "Time:", "", "| | y | z | seeds |", "|---|---:|---:|---:|", "| a | 2.0 | 3 | 1 |",
    ]  # fmt: skip


def test_curves_of_seeds_are_put_together_at_the_steps_that_all_have() -> None:
    found = together("a", [[(1, 1.0), (2, 2.0), (3, 9.0)], [(2, 4.0), (3, 1.0)]])
    lines = {"mean": [3.0, 5.0], "low": [2.0, 1.0], "high": [4.0, 9.0]}
    assert found == {"name": "a", "x": [2, 3], **lines, "runs": 2}
    assert together("a", []) is None
    long = together("a", [[(step, float(step)) for step in range(1000)]])
    assert long is not None and len(long["x"]) == 120 and (long["x"][0], long["x"][-1]) == (0, 999)


def test_training_time_is_that_of_all_attempts() -> None:
    """time_s counts from where a run was resumed: 30 s, then 12 s, then 5 s."""
    times = [10.0, 20.0, 30.0, 6.0, 12.0, 5.0]
    lines: list[dict[str, float]] = [{"step": n, "time_s": value} for n, value in enumerate(times)]
    assert seconds_of(lines) == 47.0
    assert seconds_of([]) == 0.0 and seconds_of([{"step": 1}]) == 0.0


def test_the_code_of_runs_is_that_which_made_them(tmp_path: Path) -> None:
    facts = [{"commit": "b" * 40, "patch": None}, {"commit": "a" * 40, "patch": "+x"}, {"commit": None}]
    for name, each in zip("xyz", [*facts[:2], facts[0]], strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(json.dumps(each))
    (tmp_path / "half").mkdir()
    (tmp_path / "half/provenance.json").write_text('{"commit": "c')
    runs = [tmp_path / name for name in ("x", "y", "z", "half", "none")]
    assert commits_of(runs) == [f"{'a' * 40} with changes", "b" * 40]


def kept(experiment: ExperimentConfig, seeds: int = 5) -> dict[str, Any]:
    config = json.loads(json.dumps(experiment.model_dump(mode="json") | {"changes": [], "seeds": seeds}))
    return {"config": config, "rows": [], "missing": []}


def test_a_result_is_kept_of_the_settings_that_are_shipped_alone() -> None:
    shipped = read_experiment(Asked("collapse"))
    assert refusal(kept(shipped)) is None
    assert refusal(kept(shipped.model_copy(update={"question": "Why?", "plots": (), "seeds": 9}), 9)) is None
    assert "is none of" in str(refusal(kept(shipped.made_quick())))
    by_hand = kept(shipped)
    by_hand["config"]["changes"] = ["optim.lr=1"]
    assert "optim.lr=1" in str(refusal(by_hand))
    edited = kept(shipped)  # a copy of the file, of the same name
    edited["config"]["stages"]["runs"]["settings"]["optim.lr"] = 0.01
    assert str(refusal(edited)).startswith("its stages are not those of configs/experiments/collapse.yaml")
    edited = kept(shipped)
    edited["config"]["data"]["demo"]["videos"] = 100
    assert str(refusal(edited)).startswith("its data are not those")


def test_a_result_is_kept_of_what_runs_are_asked_now(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = read_experiment(Asked("planning"))
    asked = json.loads(json.dumps(asked_of(shipped)))
    assert asked["searches"]["Cem"]["std"] == asked["searches"]["Mppi"]["std"] == 8.0
    assert refusal(kept(shipped) | {"asked": asked}) is None
    before = digest_of(shipped)
    monkeypatch.setattr(evaluate, "REPLAN", 2)
    assert "what runs are asked has changed since" in str(refusal(kept(shipped) | {"asked": asked}))
    assert digest_of(shipped) != before
    assert asked_of(read_experiment(Asked("collapse"))) is None


def test_an_evaluation_is_kept_for_the_settings_it_was_made_under(tmp_path: Path) -> None:
    assert kept_evaluation(tmp_path, "a") is None
    keep_evaluation(tmp_path, "a", Evaluated({"x": 1.5}))
    assert kept_evaluation(tmp_path, "a") == Evaluated({"x": 1.5})
    assert kept_evaluation(tmp_path, "b") is None
    (tmp_path / "evaluated.json").write_text('{"digest": "a", "val')
    assert kept_evaluation(tmp_path, "a") is None


def test_maps_of_the_first_seed_of_each_arm_are_kept_drawn_and_shown(tmp_path: Path) -> None:
    def of(value: float) -> dict[str, Any]:
        at = np.array([0.0, 1.0])
        each = Map("model", at, np.array([[value, 9.0], [9.0, 9.0]]), ((0.0, 0.0),), (), "L1")
        return Maps("energy", "Energies", "One goal.", (each,), "ax", "ay", ring="least").plain()

    cells = [Cell(arm, None, seed) for arm in ("a", "b") for seed in (1, 0)]
    found = maps_of_arms({cell: of(cell.seed + 0.5) for cell in cells} | {Cell("c", None, 0): None}, None)
    (kept,) = json.loads(json.dumps(found))
    assert [each["name"] for each in kept["maps"]] == ["a, seed 0: model", "b, seed 0: model"]
    assert {each["values"][0][0] for each in kept["maps"]} == {0.5}
    (path,) = draw_all_maps([kept], "try", tmp_path)
    words = "".join(ET.parse(path).getroot().itertext())
    assert path.name == "try-energy.svg" and "least" in words
    assert "b, seed 0" in words and "model" in words, "whose it is above what it is"
    assert maps_of_arms({cells[0]: None}, None) == []


def test_measures_are_drawn_over_their_numbers_with_those_beside() -> None:
    plot = Plot(
        title="Errors",
        caption="c",
        over="measures",
        across="frames ahead",
        at=(1, 4, 16),
        panels=(
            Panel(
                unit="widths",
                key="error {}: model",
                beside={"copy": "error {}: copy", "more": "error {}: copy"},
            ),
        ),
    )
    experiment = read_experiment(Asked("actions")).model_copy(update={"plots": (plot,)})
    first, second = "true actions", "zero actions"
    evaluated = {
        Cell(arm, None, seed): {f"error {n}: {way}": base + n + seed for n in (1, 4) for way, base in ways}
        for arm, ways in {first: (("model", 0.0), ("copy", 9.0)), second: (("model", 1.0),)}.items()
        for seed in (0, 2)
    }
    (found,) = json.loads(json.dumps(plots_of(experiment, {"predictors": {}}, [], evaluated)))
    assert found["across"] == "frames ahead"
    curves = {each["name"]: each for each in found["panels"][0]["curves"]}
    assert set(curves) == {first, second, "copy", "more"}, "arms without a run have no curve"
    assert curves[first]["x"] == [1, 4], "at 16 nothing was told"
    assert (curves[first]["mean"], curves[first]["low"], curves[first]["high"]) == ([2, 5], [1, 4], [3, 6])
    assert (curves[second]["mean"], curves["copy"]["mean"]) == ([3, 6], [11, 14])
    drawn = {each.name: each for each in figure_of(found, "e").axes[0].curves}
    assert {each: curve.is_dashed for each, curve in drawn.items()} == {
        first: False,
        second: False,
        "copy": True,
        "more": True,
    }
    assert drawn["copy"].colour is drawn["more"].colour is None, "no arm's colour"
    assert len({drawn[each].marker for each in (first, "copy", "more")}) == 3
    assert empty_panels([found]) == []
    (nothing,) = plots_of(experiment, {"predictors": {}}, [], {})
    assert empty_panels([nothing]) == ["'Errors' has no curve of widths: no run told such numbers"]


def test_one_number_far_below_leaves_the_picture_and_the_caption_says_so(tmp_path: Path) -> None:
    panel = Panel(unit="R²", key="probe/trained/radius", at_least=-0.2)
    plot = Plot(title="t", caption="Read.", panels=(panel,))
    shipped = read_experiment(Asked("collapse"))
    arm = "frozen target"

    def drawn(*lowest: float) -> tuple[str, str]:
        lines = {
            Cell(arm, None, seed): [{"step": 1, panel.key: 0.9}, {"step": 2, panel.key: low}]
            for seed, low in enumerate(lowest)
        }
        experiment = shipped.model_copy(update={"plots": (plot,)})
        plots = json.loads(json.dumps(plots_of(experiment, {"runs": lines}, [], {})))
        ((path, _),) = draw_plots(plots, "e", tmp_path)
        return plots[0]["caption"], path.read_text(encoding="utf-8")

    def ticks(picture: str) -> set[str]:
        return set(re.findall(r"[>\s]([\u2212]?\d\.\d)</text>", picture))

    said, picture = drawn(-4.25, 0.5)
    assert said == "Read. R²: what is below -0.2, to -4.2, is not drawn."
    assert not {tick for tick in ticks(picture) if tick.startswith("\u2212")}, "the axes go on below"
    assert "0.4" in ticks(picture), "the axes are not those of what is drawn"
    said, _ = drawn(-0.1, 0.5)
    assert said == "Read."


def test_levels_stand_as_far_apart_as_their_ratios_each_at_a_tick(tmp_path: Path) -> None:
    levels = (0.05, 0.2, 0.8)
    spreads = [Spread("latent", level, "position", (level,)) for level in levels]
    panel = Panel(unit="R²", key="position")
    plot = Plot(title="t", caption="c", over="levels", log_across=True, panels=(panel,))
    experiment = read_experiment(Asked("chance")).model_copy(update={"plots": (plot,)})
    plots = json.loads(json.dumps(plots_of(experiment, {}, spreads, {})))
    ((path, _),) = draw_plots(plots, "e", tmp_path)
    drawn = ET.parse(path).getroot()
    ticks = [each for each in drawn.iter() if re.fullmatch(r"xtick_\d+", each.get("id", ""))]
    told = ["".join(each.itertext()).strip() for each in ticks]
    places = [float(use.get("x", "")) for each in ticks for use in each.iter() if use.tag.endswith("}use")]
    assert told == ["0.05", "0.2", "0.8"]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], rel=1e-3)


@pytest.mark.parametrize(("arms", "measures"), [(2, 3), (2, 11), (11, 13)])
def test_a_table_on_a_terminal_is_no_wider_than_it_and_leaves_nothing_out(arms: int, measures: int) -> None:
    """As it stands, turned, and in parts."""
    names = [f"measure {number}, of a name" for number in range(measures)]
    values = {
        Cell(f"arm {arm}", None, seed): {name: 100 * arm + at + seed for at, name in enumerate(names)}
        for arm in range(arms)
        for seed in range(2)
    }
    spreads = spreads_of(values, {}, [f"arm {arm}" for arm in range(arms)], names, None)
    text = drawn_table(spreads, dict.fromkeys(names, 1), None)
    assert all(len(line) <= 120 for line in text.splitlines())
    words = " ".join(text.split())
    for arm in range(arms):
        for at in range(measures):
            assert f"{100 * arm + at + 0.5:.1f} ± 0.7" in words
    assert all(name in words for name in names)
    assert ("seeds" in text.splitlines()[0]) == (measures == 3)
