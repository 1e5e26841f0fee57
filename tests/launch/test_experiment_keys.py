"""Every number that a shipped experiment shows is one that its runs are asked for, in these very words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.experiment.command import Asked, planned, read_experiment
from launch.experiment.config import PLACE, ExperimentConfig
from launch.experiment.data import folder_of
from launch.experiment.evaluate import EVALUATIONS
from launch.experiment.runs import Run
from pretrain import rollout
from pretrain.planning import agreement, landscape, measure
from pretrain.planning.control import Episode
from pretrain.planning.measure import MODEL, WAYS, Planning, PlanningSettings
from pretrain.rollout.measure import CEILING, COPY, HORIZONS, MEAN, ROLLED, Rollout


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
    plain = Rollout(4, 60, 0, 0, {name: np.ones(16) for name in ROLLED}, {}, {})
    assert set(HORIZONS) <= {int(name.split()[2][:-1]) for name in plain.measures()}


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
