"""Every number that is asked of runs is one that they give, in these very words; and of what was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measuring import RESULTS
from launch.experiment.command import Asked, planned, read_experiment, shipped_experiments
from launch.experiment.config import PLACE, ExperimentConfig
from launch.experiment.data import folder_of
from launch.experiment.evaluate import EVALUATIONS
from launch.experiment.runs import Run
from launch.experiment.summary import UNTRAINED
from pretrain import rollout
from pretrain.planning import agreement, landscape, measure
from pretrain.planning.control import Episode
from pretrain.planning.measure import MODEL, WAYS, Planning, PlanningSettings
from pretrain.rollout.measure import CEILING, COPY, MEAN, ROLLED, Rollout


def keys_of(experiment: ExperimentConfig) -> set[str]:
    """Those of measures and figures, but for metrics of training."""
    found = {
        key
        for each in experiment.measures
        for key in (each.key, each.minus, each.share_of)
        if key is not None
    }
    for plot in experiment.plots:
        for panel in plot.panels if plot.over == "measures" else ():
            for pattern in (panel.key, *panel.beside.values()):
                found |= {pattern.replace(PLACE, f"{number:g}") for number in plot.at}
    return found


def last_runs(experiment: ExperimentConfig, folder: Path) -> tuple[list[Run], dict[str, Path]]:
    shards = {name: folder_of(folder, name, spec) / "shards" for name, spec in experiment.data.items()}
    return list(planned(experiment, folder, shards, ()).values())[-1], shards


@pytest.mark.parametrize("is_quick", [False, True])
def test_those_of_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool) -> None:
    def rolled(*_: Any, steps: int, **__: Any) -> Rollout:
        errors = {name: np.arange(1.0, steps + 1) for name in (*ROLLED, COPY, MEAN)}
        return Rollout(4, 60, 0, 0, errors, errors, errors | {CEILING: np.ones(steps)})

    monkeypatch.setattr(rollout, "measure_rollout", rolled)
    experiment = read_experiment(Asked("actions", is_quick=is_quick))
    runs, shards = last_runs(experiment, tmp_path)
    for run in runs:
        told = EVALUATIONS["rollout"].ask(experiment, run, shards, lambda *_: None).numbers
        assert keys_of(experiment) - set(told) == set()


def test_those_of_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PlanningSettings(steps=6, replan=3)

    def acted(*_: Any, ways: tuple[str, ...], **__: Any) -> Planning:
        each = tuple(Episode((away, *[0.2] * 5, 0.05), (3.0,)) for away in (0.3, 0.4, 0.7))
        return Planning(settings, dict.fromkeys(ways, each))

    class Seen:
        def agreement(self, *_: Any) -> float:
            return 0.5

    monkeypatch.setattr(measure, "measure_planning", acted)
    monkeypatch.setattr(agreement, "landscapes", lambda *_, **__: [Seen()])
    monkeypatch.setattr(landscape, "maps_of", lambda _: ())
    monkeypatch.setattr(landscape, "energy_maps", lambda *_: type("No", (), {"plain": lambda _: None})())
    experiment = read_experiment(Asked("planning"))
    runs, shards = last_runs(experiment, tmp_path)
    told = EVALUATIONS["planning"].ask(experiment, runs[0], shards, lambda *_: None).numbers
    assert keys_of(experiment) - set(told) == set()
    assert {f"planning reached: {way}" for way in WAYS} <= set(told)
    assert told[f"planning reached, 0.5 away: {MODEL}"] == 1.0


@pytest.mark.parametrize("name", shipped_experiments())
def test_those_of_what_is_kept(name: str) -> None:
    """Of training's metrics and of causes, too: each measure has a row of every arm, and of no training."""
    path = RESULTS / f"experiment_{name}.json"
    if not path.exists():
        pytest.skip(f"{name} was not measured yet")
    found = json.loads(path.read_text())
    rows = {(row["arm"], row["metric"]) for row in found["rows"]}
    experiment = read_experiment(Asked(name))
    expected = {(arm, each.name) for arm in experiment.last.arms for each in experiment.measures}
    untrained = {(UNTRAINED, each.name) for each in experiment.measures if each.untrained}
    assert rows == expected | untrained
