"""Experiments whose files cannot be meant: each is told by its key before anything is made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import ConfigError, UsageError
from launch.experiment.command import Asked, run_experiment
from tests.launch.test_experiment import ARMS

LAST = ("stages", "second")
ACTS = {
    "objective.kind": "action_latent",
    "objective.action_size": 2,
    "objective.state_size": 0,
    "target.kind": "frozen",
    "augment.hflip": False,
}
OVER = {"over": "measures", "across": "frames", "at": [1, 4], "panels": [{"unit": "u", "key": "x {}"}]}
WORLD = {"size": 32, "fps": 8.0, "band": [1, 6]}


def said_of(tmp_path: Path, *changes: tuple[tuple[Any, ...], Any], is_quick: bool = False) -> str:
    """What is told of the experiment under these changes."""
    plain = copy.deepcopy(yaml.safe_load(ARMS))
    for path, value in changes:
        holder = plain
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    asked = Asked(str(tmp_path / "e.yaml"), is_quick=is_quick, out=tmp_path / "out")
    with pytest.raises((ConfigError, UsageError)) as caught:
        run_experiment(asked, lambda _: None)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("name",), "a" * 300, "e.yaml:1: name is 'aaa"),
        (("seeds",), 10**9, "e.yaml:3: seeds is 1000000000: need at most 1000"),
        (("axis",), "a|b", "axis is 'a|b': need words"),
        (("against",), "nobody", "against is 'nobody': need one of the arms only"),
        (("stages", "data"), {"data": "one", "arms": {"a": {}}}, "stages.data: need another name"),
        ((*LAST, "arms"), None, "stages.second.arms: need `key: value` lines"),
        ((*LAST, "arms"), {}, "stages.second.arms: need at least 1 named"),
        ((*LAST, "arms", "only"), None, "stages.second.arms.only: need a group of keys: settings, data"),
        ((*LAST, "arms", "a|b"), {"data": "two"}, "stages.second.arms.a|b: need words in a line"),
        ((*LAST, "arms", "untrained encoder"), {"data": "two"}, "that of a row of the table"),
        ((*LAST, "arms", "twin"), {"note": "x"}, "arms.twin: need something that tells it from 'only'"),
        ((*LAST, "train"), "../../e.yaml", "stages.second.train is '../../e.yaml': need a file of"),
        ((*LAST, "settings", "out"), "/elsewhere", "stages.second.settings.out: need it left out"),
        ((*LAST, "settings", "data"), {"shards": "x"}, "settings.data: need it left out"),
        ((*LAST, "settings", "init.weights"), "x", "settings.init.weights: need it left out"),
        ((*LAST, "settings", "optim.lr"), float("nan"), "settings.optim.lr: need finite numbers"),
        (("data", "one", "shard"), {"out": "/elsewhere"}, "data.one.shard.out: need it left out"),
        (("data", "one", "shard"), {"cut.lenght_s": 1}, "shard.cut.lenght_s: need a key that exists"),
        (("data", "one", "world"), {"leaves": 2}, "data.one.world.leaves is 2: need at most 0.95"),
        (("data", "one", "world"), {"leavs": 0.2}, "data.one.world.leavs: need a key that exists; try "),
        (("data", "one"), {"videos": 1, "world": {"actions": "shuffled"}}, "data.one.videos is 1"),
        (("levels", 1, "value"), 0.1, "levels.1.value is 0.1: need another value"),
        (("levels", 1), {"value": 2, "data": "one"}, "levels.1: need data or settings that differ"),
        (("measures",), [{"name": "a", "key": "loss"}] * 2, "measures.1.name is 'a': need another name"),
        ((*LAST, "settings"), {"train": {"steps": 10}}, "settings.train.steps: need train.steps in one line"),
        ((*LAST, "settings"), {"train.log_every": 10}, "settings.train.steps: need a number: quick.shorter"),
        (("quick", "levels"), [0.7], "quick.levels is [0.7]: need some of the levels [0.1, 0.8]"),
    ],
)  # fmt: skip
def test_each_is_told_by_its_key_and_line(
    path: tuple[Any, ...], value: Any, told: str, tmp_path: Path
) -> None:
    assert told in said_of(tmp_path, (path, value))


@pytest.mark.parametrize(
    ("plot", "told"),
    [
        ({"over": "levels", "panels": [{"unit": "u", "key": "lozz"}]}, "plots.0.panels.0.key is 'lozz'"),
        ({"over": "levels", "stage": "first", "panels": [{"unit": "u", "key": "loss"}]}, "need the last one"),
        ({**OVER, "stage": "first"}, "plots.0.stage is 'first': need the last one"),
        ({**OVER, "across": None}, "plots.0.across: need what the numbers in `at` count"),
        ({**OVER, "at": [4, 1]}, "plots.0.at is [4.0, 1.0]: need at least two numbers, ascending"),
        ({**OVER, "panels": [{"unit": "u", "key": "x 1"}]}, "plots.0.panels.0.key is 'x 1': need one {}"),
        (
            {**OVER, "panels": [{"unit": "u", "key": "x {}", "beside": {"b": "y"}}]},
            "panels.0.beside.b is 'y': need one {}",
        ),
        (
            {**OVER, "arms": ["only"], "panels": [{"unit": "u", "key": "x {}", "beside": {"only": "{}"}}]},
            "panels.0.beside.only: need another name",
        ),
        ({"at": [1, 2], "panels": [{"unit": "u", "key": "loss"}]}, "plots.0.at: need it left out"),
        ({"panels": [{"unit": "u", "key": "x", "beside": {"b": "{}"}}]}, "plots.0.beside: need it left out"),
        (
            {"log_across": True, "panels": [{"unit": "u", "key": "loss"}]},
            "plots.0.log_across is True: need it left out",
        ),
        (
            {**OVER, "log_across": True, "at": [0, 1]},
            "need it left out: not all of [0.0, 1.0] are above zero",
        ),
        ({"arms": ["fast"], "panels": [{"unit": "u", "key": "loss"}]}, "need one of the arms only"),
        ({"panels": [{"unit": "u", "key": "loss"}]}, "plots.0.level: need the level whose runs are drawn"),
        ({**OVER, "level": 0.2}, "plots.0.level is 0.2: need the level whose runs are drawn, one of [0.1"),
        (
            {"over": "levels", "level": 0.1, "panels": [{"unit": "u", "key": "loss"}]},
            "plots.0.level is 0.1: need it left out",
        ),
    ],
)
def test_a_plot_is_of_what_there_is(plot: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert told in said_of(tmp_path, (("plots",), [{"title": "t", "caption": "c", **plot}]))


@pytest.mark.parametrize(
    ("evaluate", "settings", "world", "told"),
    [
        ("rollout", {}, WORLD, "'only' of the last stage has objective.kind masked_latent"),
        ("rollout", {**ACTS, "objective.state_size": 3}, WORLD, "was told states of 3 numbers"),
        ("rollout", ACTS, WORLD, "wants 20 frames at 8 a second, and clips of data.one last 2 s: need"),
        ("rollout", ACTS, {**WORLD, "actions": "zero"}, "the actions in data.one are zero: runs are asked"),
        ("planning", ACTS, None, "data.one.world: need a world"),
        ("planning", {**ACTS, "objective.action_size": 3}, WORLD, "actions of 3 numbers"),
        ("planning", ACTS, {**WORLD, "fps": 12.0}, "12.0 frames a second"),
        ("planning", ACTS, {**WORLD, "push": 0}, "push is 0"),
        ("planning", ACTS, {**WORLD, "duration_s": 0.3}, "have 2 frames, and a task begins after 3"),
    ],
)
def test_what_runs_are_asked_must_fit_them(
    evaluate: str, settings: dict[str, Any], world: dict[str, Any] | None, told: str, tmp_path: Path
) -> None:
    own = {"strategy.kind": "single", "train.steps": 10, "optim.warmup_steps": 2, **settings}
    found = said_of(
        tmp_path,
        ((*LAST, "settings"), own),
        (("data", "one", "world"), world),
        (("levels",), []),
        (("quick",), {}),
        (("evaluate",), evaluate),
    )
    assert told in found


def test_what_an_experiment_sets_itself_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(ARMS)
    for change in ("seed=3", "data.shards=elsewhere", "out=elsewhere", "data={shards: x}"):
        with pytest.raises(UsageError, match="leave it out"):
            run_experiment(Asked(str(tmp_path / "e.yaml"), (change,), out=tmp_path / "out"), print)
