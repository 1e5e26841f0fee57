"""Experiments: which runs they are, what is measured, what is said of arms; and one from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import experiments
from data_pipeline.errors import ConfigError, UsageError
from data_pipeline.worlds import World
from launch.cli import app
from launch.config import read_config
from launch.experiment import command, data
from launch.experiment.command import Asked, planned, read_experiment, run_experiment, shipped_experiments
from launch.experiment.config import ExperimentConfig
from launch.experiment.data import shards_of
from launch.experiment.evaluate import EVALUATIONS
from launch.experiment.rules import check_rules
from launch.experiment.runs import Cell
from pretrain import causes, rollout
from pretrain.config import RunConfig
from pretrain.flops import flops_a_clip
from pretrain.planning import measure
from pretrain.rollout import Rollout
from tests.launch.sweeps import small_config, training  # noqa: F401  fixtures

ARMS = """
name: try
question: Does the rate matter?
seeds: 3
data: {one: {videos: 4}, two: {videos: 4, seed: 1}}
axis: noise
levels: [{value: 0.1, data: one}, {value: 0.8, data: two, settings: {data.fps: 4.0}}]
stages:
  first:
    data: one
    settings: {strategy.kind: single, train.steps: 10, optim.warmup_steps: 1}
    arms: {slow: {}, fast: {settings: {optim.lr: 0.5}}}
  second:
    data: one
    settings: {strategy.kind: single, train.steps: 10, optim.warmup_steps: 2}
    weights_of: [first, fast]
    arms: {only: {}}
measures: [{name: loss, key: loss}]
quick: {seeds: 1, videos: 2, levels: [0.8], shorter: 2, settings: {train.log_every: 1}}
"""

EQUAL_FLOPS = ("noise", "pooling", "chance")  # what their pages say; the ceiling is cheaper


def read(path: Path, text: str) -> ExperimentConfig:
    path.write_text(text)
    return read_config(path, [], ExperimentConfig)


@pytest.mark.parametrize("name", shipped_experiments())
@pytest.mark.parametrize("is_quick", [False, True])
def test_every_shipped_experiment_has_runs_whose_configs_are_valid(
    name: str, is_quick: bool, tmp_path: Path
) -> None:
    experiment = read_experiment(Asked(name, is_quick=is_quick))
    assert experiment.seeds >= (1 if is_quick else 5), "a claim needs five seeds"
    found = planned(experiment, tmp_path, shards_of(tmp_path, experiment.data), ())
    for stage, runs in found.items():
        arms = experiment.stages[stage].arms
        assert len(runs) == experiment.seeds * len(arms) * max(1, len(experiment.levels))
        one_each = [run for run in runs if run.cell.seed == 0 and run.cell.level == runs[0].cell.level]
        trains = [run.element.config.train for run in one_each]
        clips = [train.steps * train.global_batch for train in trains]
        flops = [n * flops_a_clip(run.element.config).model for n, run in zip(clips, one_each, strict=True)]
        for run, n, own in zip(one_each, clips, flops, strict=True):
            is_as_long = n == clips[0]
            assert is_as_long or own == pytest.approx(flops[0], rel=0.02), f"{run.cell} has another budget"
            if name in EQUAL_FLOPS and "supervised" not in run.cell.arm:
                assert own == pytest.approx(flops[0], rel=0.05), f"{run.cell} has other FLOPs"
        others = [run.element.config.train for run in runs]
        assert {(each.steps, each.global_batch) for each in others} == {
            (each.steps, each.global_batch) for each in trains
        }, "an arm has one budget at every level and seed"


def test_runs_are_arms_by_levels_by_seeds_each_on_its_data_and_from_its_weights(tmp_path: Path) -> None:
    experiment = read(tmp_path / "e.yaml", ARMS)
    shards = shards_of(tmp_path / "data", experiment.data)
    assert shards["one"] != shards["two"]
    found = planned(experiment, tmp_path, shards, ("train.log_every=2",))
    first, second = found["first"], found["second"]
    assert len(first) == 12 and len(second) == 6
    by = {run.cell: run.element for run in first}
    fast = by[Cell("fast", 0.8, 2)].config
    assert (fast.optim.lr, fast.data.fps, fast.seed, fast.train.log_every) == (0.5, 4.0, 2, 2)
    assert fast.data.shards == str(shards["two"])
    assert by[Cell("slow", 0.1, 0)].config.data.shards == str(shards["one"])
    for run in second:
        weights = by[Cell("fast", run.cell.level, run.cell.seed)]
        assert run.element.config.init.weights == str(weights.run)
    assert {run.cell.seed for run in first[:4]} == {0}, "whole seeds come first"


def test_quick_has_fewer_seeds_levels_videos_and_steps_and_a_folder_of_its_own(tmp_path: Path) -> None:
    plain = yaml.safe_load(ARMS)
    plain["levels"][1]["settings"]["probe.every"] = 7
    panels = [{"unit": "loss", "key": "loss"}]
    plain["plots"] = [{"title": "t", "caption": "c", "level": at, "panels": panels} for at in (0.1, 0.8)]
    quick = read(tmp_path / "e.yaml", yaml.safe_dump(plain, sort_keys=False)).made_quick()
    assert [each.level for each in quick.plots] == [0.8], "the other level is not tried"
    assert quick.levels[0].settings == {"data.fps": 4.0, "probe.every": 3}
    assert (quick.name, quick.seeds, [each.value for each in quick.levels]) == ("try-quick", 1, [0.8])
    assert {each.videos for each in quick.data.values()} == {2}
    runs = planned(quick, tmp_path, shards_of(tmp_path, quick.data), ())
    configs = [run.element.config for each in runs.values() for run in each]
    assert {(each.train.steps, each.train.log_every) for each in configs} == {(5, 1)}
    assert configs[-1].optim.warmup_steps == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("data: one\n    settings: {strategy.kind: single, train.steps: 10, optim.warmup_steps: 1}",
         "data: three", "three"),
        ("weights_of: [first, fast]", "weights_of: [first, quick]", "quick"),
        ("axis: noise", "axis: null", "axis"),
        ("data: two", "data: four", "four"),
        ("name: try", "name: Try this", "a folder's name"),
        ("train.steps: 10, optim.warmup_steps: 1", "train.stepz: 10", "train.steps"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_is_made(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    assert old in ARMS
    (tmp_path / "e.yaml").write_text(ARMS.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        run_experiment(Asked(str(tmp_path / "e.yaml"), out=tmp_path / "out"), lambda _: None)
    assert said in " ".join(str(problem) for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_experiment_is_refused_with_those_that_are() -> None:
    found = CliRunner().invoke(app, ["experiment", "colapse"])
    assert isinstance(found.exception, UsageError) and "collapse" in str(found.exception)
    assert "collapse-planted" not in shipped_experiments()


def test_what_arms_differ_in_is_not_laid_over_them(tmp_path: Path) -> None:
    for change in ("train.steps=2000", "train={steps: 3}"):
        with pytest.raises(
            UsageError, match=r"is set by the experiment for .*pixel, 1e-3.*; change it in a copy"
        ):
            run_experiment(Asked("noise", (change,), out=tmp_path / "out"), print)
    (tmp_path / "e.yaml").write_text(ARMS)
    with pytest.raises(UsageError, match=r"data.fps is set by the experiment for noise 0.8; change"):
        run_experiment(Asked(str(tmp_path / "e.yaml"), ("data.fps=2",), out=tmp_path / "out"), print)
    with pytest.raises(UsageError, match=r"an experiment sets init\.weights of its runs itself"):
        run_experiment(Asked("actions", ("init.weights=x",), out=tmp_path / "out"), print)
    assert not (tmp_path / "out").exists()


def test_a_data_set_is_anothers_when_what_it_is_laid_over_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_experiment(Asked("collapse")).data
    before = shards_of(tmp_path, spec)
    assert before == shards_of(tmp_path, spec)
    monkeypatch.setattr(data, "laid_over", lambda: {"encode": {"short_side": 65}})
    assert not set(before.values()) & set(shards_of(tmp_path, spec).values())


def test_help_names_every_experiment() -> None:
    said = CliRunner().invoke(app, ["experiment", "--help"], env={"COLUMNS": "200"}).output
    assert [name for name in shipped_experiments() if name not in said] == []


@pytest.mark.parametrize("arm", ["true actions", "shuffled actions", "zero actions", "true actions, walls"])
def test_who_was_told_no_action_is_not_judged_by_what_it_makes_of_them(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = read_experiment(Asked("actions"))
    shards = shards_of(tmp_path, experiment.data)
    runs = planned(experiment, tmp_path, shards, ())["predictors"]
    run = next(each for each in runs if each.cell == Cell(arm, None, 3))
    names = ("true actions", "shuffled actions", "zero actions", "copy of the last frame")
    asked: list[str] = []

    def measure(run: Path, data: str, **_: object) -> Rollout:
        asked.append(data)
        errors = {name: np.full(16, 10.0 * len(asked) + n) for n, name in enumerate(names)}
        return Rollout(4, 60, 0, 2500, errors, {}, errors)

    monkeypatch.setattr(rollout, "measure_rollout", measure)
    found = EVALUATIONS["rollout"].ask(experiment, run, shards, lambda *_: None).numbers
    is_told_none = arm == "zero actions"
    world = "pushed-walls" if arm == "true actions, walls" else "pushed"
    assert asked == [str(shards[name]) for name in (world, *(["pushed-zero"] if is_told_none else []))]
    assert found["rollout position 16: true actions"] == 10.0, "on true actions, whatever it was told"
    assert found["rollout position 16: zero actions"] == 12.0
    expected = 20.0 if is_told_none else 10.0
    assert found["rollout position 16: as trained"] == found["rollout latent 1: as trained"] == expected


def test_causes_are_asked_of_each_runs_own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = read_experiment(Asked("noise", seeds=2))
    found = planned(experiment, tmp_path, shards_of(tmp_path, experiment.data), ())["runs"]
    asked: list[tuple[Path, float, int]] = []

    def measure(run: Path, world: World, *, seed: int) -> dict[str, float]:
        asked.append((run, world.leaves, seed))
        return {"features by leaves": world.leaves}

    monkeypatch.setattr(causes, "measure_causes", measure)
    some = [run for run in found if run.cell.seed == 1 and run.cell.arm == "pixel, 1e-3"]
    for run in some:
        own = EVALUATIONS["causes"].ask(experiment, run, {}, lambda *_: None).numbers
        assert own == {"features by leaves": run.cell.level}
    assert asked == [(run.element.run, run.cell.level, 0) for run in some]
    plain = experiment.model_dump(mode="json")
    plain["data"]["leaves-50"]["world"]["leaves"] = 0.0
    bare = ExperimentConfig.model_validate(plain)
    with pytest.raises(UsageError, match="'latent, 3e-4' has no leaves"):
        planned(bare, tmp_path, shards_of(tmp_path, bare.data), ())


def test_an_experiment_is_run_told_and_goes_on_where_it_was(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    monkeypatch.setattr(command, "make_data", lambda folder, name, spec, stages: made.append(name))
    monkeypatch.setattr(command, "check_elements", lambda sweep: None)
    plain = yaml.safe_load(ARMS)
    del plain["stages"]["second"]
    plain |= {
        "against": "slow",
        "measures": [*plain["measures"], {"name": "TFLOP", "key": "training TFLOPs", "digits": 1}],
        "plots": [
            {"title": "t", "caption": "c", "over": "levels", "panels": [{"unit": "loss", "key": "loss"}]},
            {"title": "t", "caption": "c", "level": 0.8, "panels": [{"unit": "loss", "key": "loss"}]},
        ],
    }
    Path("e.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    said: list[str] = []
    asked = Asked("e.yaml", seeds=2, parallel=2, out=Path("out"))
    assert run_experiment(asked, said.append) == 0
    assert set(made) == {"one", "two"}
    result = json.loads(Path("out/try/result.json").read_text())
    assert result["laid_over"]["train/tiny-cpu.yaml"]["optim"]["lr"] == 1e-3
    assert (
        result["laid_over"]["data/demo.yaml"]["encode"]["short_side"]
        == data.laid_over()["encode"]["short_side"]
    )
    rows = {row["case"]: row for row in result["rows"] if row["metric"] == "loss"}
    # the stand-in's loss is its learning rate plus its seed
    assert rows["fast, noise 0.1"]["ours"] == pytest.approx(1.0)
    assert rows["fast, noise 0.1"]["difference"] == pytest.approx(0.5 - 1e-3)
    assert rows["fast, noise 0.1"]["half"] == pytest.approx(0.0, abs=1e-9)
    tflops = {row["ours"] for row in result["rows"] if row["metric"] == "TFLOP"}
    assert len(tflops) == 1 and min(tflops) > 0
    assert result["plots"][0]["panels"][0]["curves"][1]["x"] == [0.1, 0.8]
    assert {curve["runs"] for curve in result["plots"][1]["panels"][0]["curves"]} == {2}, "of one level"
    for number in (1, 2):
        assert Path(f"out/try/try-{number}.svg").read_text().startswith("<?xml")
    assert "| fast | 1.00 ± 0.71* | 0.2 ± 0.0 | 2 |" in Path("out/try/table.md").read_text()
    starts = sorted(Path("out/try/first").glob("0*/starts"))
    assert len(starts) == 8
    ended = [line.split()[0] for line in said if " finished in " in line]
    assert ended == [f"{number}/8" for number in range(1, 9)], "what has ended never goes back"
    assert any("ended  fast, noise 0.8, seed 1  started, " in line for line in said)
    called = [read_config(path.parent / "config.yaml", [], RunConfig) for path in starts]
    assert {each.tracker.run_name for each in called} == {
        f"{arm}, noise {level}, seed {seed}"
        for arm in ("fast", "slow")
        for level in (0.1, 0.8)
        for seed in (0, 1)
    }
    assert all(each.name[:3].isdigit() for each in called), "and folders stay as they were"
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    Path("experiment_try.json").write_text(json.dumps(result))
    page = experiments.experiment_table("try")
    assert Path("out/try/table.md").read_text().partition("\n\n")[2].strip() in page
    assert "over 2 seeds" in page and "![t](ideas/try-2.svg)" in page

    assert run_experiment(asked, said.append) == 0
    assert all(len(path.read_text().splitlines()) == 1 for path in starts), "nothing was run twice"
    assert run_experiment(Asked("e.yaml", seeds=3, parallel=2, out=Path("out")), said.append) == 0
    assert len(sorted(Path("out/try/first").glob("0*/starts"))) == 12
    assert all(path.read_text() == "\n" for path in starts), "on the CPU"

    Path("other.yaml").write_text(
        yaml.safe_dump({**plain, "data": {key: {"videos": 3} for key in plain["data"]}})
    )
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seeds": 2}, "holds a result of 3 seeds: give --seeds 3 or more, choose another --out, or remove"),
        ({"seeds": 3, "changes": ("train.log_every=5",)}, "holds a result of the settings as they are: give"),
        ({"seeds": 3, "experiment": "other.yaml"}, "holds a result of other data: choose another --out"),
    ]
    for words, told in refused:
        with pytest.raises(UsageError, match=told):
            run_experiment(Asked(**{"experiment": "e.yaml", "out": Path("out"), **words}), said.append)
    Path("out").rename("moved")
    elsewhere = Asked("e.yaml", seeds=3, parallel=2, out=Path("moved").absolute())
    assert run_experiment(elsewhere, said.append) == 0
    moved = sorted(Path("moved/try/first").glob("0*/starts"))
    assert len(moved) == 12 and all(len(path.read_text().splitlines()) == 1 for path in moved)
    uris = {each.tracker.uri for each in called}
    assert uris == {f"sqlite:///{tmp_path / 'out/try/mlflow.db'}"}, "the stages are in one store"
    assert {each.tracker.group for each in called} == {"try: first"}
    assert run_experiment(replace(elsewhere, changes=("tracker.kind=jsonl",)), said.append) == 0


def test_runs_that_fail_are_told_and_left_out(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "make_data", lambda *_: None)
    monkeypatch.setattr(command, "check_elements", lambda sweep: None)
    plain = yaml.safe_load(ARMS)
    del plain["stages"]["second"], plain["levels"], plain["axis"]
    plain["quick"].pop("levels")
    plain["stages"]["first"]["arms"]["fast"]["settings"]["optim.lr"] = 2.0  # the stand-in fails above 1
    Path("e.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    said: list[str] = []
    assert run_experiment(Asked("e.yaml", seeds=2, parallel=2, out=Path("out")), said.append) == 5
    assert "2 of the 4 runs of first did not finish; the same command goes on" in said
    result = json.loads(Path("out/try/result.json").read_text())
    assert {row["arm"] for row in result["rows"]} == {"slow"}


def test_goals_are_in_the_world_of_a_runs_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_experiment(Asked("planning", seeds=1)).model_dump(mode="json")
    plain["data"]["other"] = {
        **plain["data"]["pushed"],
        "world": {**plain["data"]["pushed"]["world"], "push": 2.0},
    }
    plain["stages"]["predictors"]["arms"]["supervised"]["data"] = "other"
    experiment = ExperimentConfig.model_validate(plain)
    shards = shards_of(tmp_path, experiment.data)
    runs = planned(experiment, tmp_path, shards, ())["predictors"]
    acted: list[float] = []

    def act(run: Path, world: World, **_: object) -> None:
        acted.append(world.push)
        raise StopIteration

    monkeypatch.setattr(measure, "measure_planning", act)
    for run in runs:
        with pytest.raises(StopIteration):
            EVALUATIONS["planning"].ask(experiment, run, shards, lambda *_: None)
    assert acted == [2.0 if run.cell.arm == "supervised" else 8.0 for run in runs]
    plain["data"]["other"]["world"] = None
    with pytest.raises(ConfigError, match=r"data.other.world: need a world: planning acts in it"):
        check_rules(ExperimentConfig.model_validate(plain))
