"""How far an experiment is said to be, and how long one will take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch.attempts import TAIL_BYTES, last_logged
from launch.config import read_config
from launch.experiment.command import Asked, planned, run_experiment
from launch.experiment.config import ExperimentConfig
from launch.experiment.data import shards_of
from launch.experiment.progress import Watch, forecast, steps_of
from launch.experiment.runs import Run
from tests.launch.test_experiment import ARMS


def test_the_last_whole_line_tells_the_step_however_long_the_file_is(tmp_path: Path) -> None:
    assert last_logged(tmp_path) == 0
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "text": "x" * 200}) for step in range(1, 2 * TAIL_BYTES // 200)]
    path.write_text("\n".join(lines) + '\n{"step": 99')
    assert last_logged(tmp_path) == len(lines), "and not the half of one"
    path.write_text("")
    assert last_logged(tmp_path) == 0


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, list[Run]]:
    """Of the small experiment; each of its runs in a folder below tmp_path."""
    (tmp_path / "e.yaml").write_text(ARMS)
    experiment = read_config(tmp_path / "e.yaml", [], ExperimentConfig)
    return planned(experiment, tmp_path, shards_of(tmp_path, experiment.data), ())


def wrote(run: Run, step: int) -> None:
    run.element.run.mkdir(parents=True, exist_ok=True)
    (run.element.run / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')


def test_what_is_left_is_told_by_the_pace_since_the_command_began(stages: dict[str, list[Run]]) -> None:
    runs = [run for each in stages.values() for run in each]
    total = sum(run.element.config.train.steps for run in runs)
    each = runs[0].element.config.train.steps
    wrote(runs[0], each)  # finished before: no part of the pace
    now = 0.0
    said: list[str] = []
    watch = Watch(runs, said.append, moves=False, clock=lambda: now)
    assert watch.told() == f"{each:,} of {total:,} steps of all runs, {each / total:.0%}"
    wrote(runs[1], each // 2)
    now = 200.0
    left = 200.0 * (total - each - each // 2) / (each // 2)
    assert watch.told().endswith(
        f", {left / 60:.0f} min left" if left < 6000 else f", {left / 3600:.1f} h left"
    )
    watch.look()
    watch.look()
    assert said == [watch.told()], "a line, and then none for minutes"
    now = 300.0
    watch.asked("planning 1/2  a", 3, 8)
    assert len(said) == 1
    now = 400.0
    watch.asked("planning 1/2  a", 4, 8)
    assert said[1:] == ["planning 1/2  a: 4 of 8"]


def test_a_line_that_moves_is_wiped_before_one_that_stays(
    stages: dict[str, list[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    watch = Watch(stages["first"], print, moves=True, clock=lambda: now)
    now = 2.0
    watch.look()
    watch.say("1/2 ended")
    watch.say("2/2 ended")
    wiped = "\r\x1b[K"
    assert capsys.readouterr().out == f"{wiped}{watch.told()}{wiped}1/2 ended\n2/2 ended\n"


def test_how_long_it_takes_is_told_by_a_result_that_is_there(
    stages: dict[str, list[Run]], tmp_path: Path
) -> None:
    total = sum(run.element.config.train.steps for runs in stages.values() for run in runs)
    experiment = read_config(tmp_path / "e.yaml", [], ExperimentConfig)
    assert steps_of(experiment) == total
    path = tmp_path / "result.json"
    unknown = forecast(stages, [path], 2)
    assert unknown.startswith(f"{total:,} steps in all; no result in {tmp_path} tells")
    quick = experiment.made_quick()
    seconds = 10.0 * (steps_of(quick) or 0)  # ten seconds a step, of runs one after another
    result = {"config": quick.model_dump(mode="json") | {"changes": []}, "seconds": seconds, "missing": []}
    path.write_text(json.dumps(result))
    hours = 10.0 * total / 2 / 3600
    told = f"{hours:.1f} h" if hours >= 6000 / 3600 else f"{hours * 60:.0f} min"
    assert f"about {told} of training" in forecast(stages, [tmp_path / "none.json", path], 2)
    path.write_text(json.dumps(result | {"missing": ["a: seed 0"]}))
    assert forecast(stages, [path], 2) == unknown


def test_a_dry_run_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(yaml.safe_dump(yaml.safe_load(ARMS), sort_keys=False))
    said: list[str] = []
    assert run_experiment(Asked("e.yaml", is_dry=True), said.append) == 0
    assert any("steps in all" in line for line in said)
