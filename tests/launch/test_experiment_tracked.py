"""What an experiment found is in MLflow: numbers at the runs, table and figures at the run above."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.experiment.command import Asked, planned, read_experiment
from launch.experiment.data import shards_of
from launch.experiment.measured import Evaluated, is_tracked, keep_evaluation, kept_evaluation
from launch.experiment.runs import Run
from launch.experiment.tracked import track_conclusion, track_evaluation
from pretrain.tracking.base import make_tracker
from pretrain.tracking.mlflow.client import make_client
from pretrain.tracking.mlflow.runs import read_record
from tests.pretrain.tracked_run import FACTS


def test_what_was_asked_is_in_mlflow_and_is_sent_again_where_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = read_experiment(Asked("actions", seeds=1))
    folder = tmp_path / "actions"
    runs = planned(experiment, folder, shards_of(folder, experiment.data), ())["predictors"]
    run, said = runs[0], list[str]()
    run.element.run.mkdir(parents=True)
    config = run.element.config
    tracker = make_tracker(config.tracker, run.element.run, say=pytest.fail)
    tracker.start(replace(FACTS, group=config.tracker.group))
    tracker.close("done")
    found = Evaluated(
        {"rollout latent 1: true actions": 0.5, "planning reached, 0.4 away: model, mppi": 0.25}
    )
    assert track_evaluation(run, "rollout", found, said.append)
    (folder / "table.md").write_text("| a |")
    track_conclusion({"predictors": runs}, [folder / "table.md"], said.append)
    client = make_client(config.tracker.uri)
    below = client.get_run(str((read_record(run.element.run) or {})["run_id"]))
    told = {key: value for key, value in below.data.metrics.items() if key.startswith("rollout/")}
    assert told == {
        "rollout/latent 1 true actions": 0.5,
        "rollout/planning reached 0.4 away model mppi": 0.25,
    }
    above = client.get_run(below.data.tags["mlflow.parentRunId"])
    assert above.info.run_name == "actions: predictors"
    assert [file.path for file in client.list_artifacts(above.info.run_id)] == ["table.md"]
    assert said == []

    moved = tmp_path / "moved"
    folder.rename(moved)
    runs = planned(experiment, moved, shards_of(moved, experiment.data), ())["predictors"]
    run = Run(runs[0].cell, replace(runs[0].element, name=run.element.name))
    assert not track_evaluation(run, "rollout", found, said.append)
    track_conclusion({"predictors": [run]}, [moved / "table.md"], said.append)
    assert said == ["the folder was moved, or another server is named: table and figures are not in MLflow"]
    assert not folder.exists(), "nothing is written to where it was"

    keep_evaluation(moved, "d", found)
    assert kept_evaluation(moved, "d") == found and not is_tracked(moved)
    keep_evaluation(moved, "d", found, is_tracked=True)
    assert kept_evaluation(moved, "d") == found and is_tracked(moved)
