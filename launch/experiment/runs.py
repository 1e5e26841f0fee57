"""The runs of an experiment's stage: a sweep of every arm at every level with every seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.errors import UsageError
from launch.config import read_config, shipped_config
from launch.experiment.config import ExperimentConfig, Level, Settings
from launch.experiment.data import DEMO, MADE_OF_DATA
from launch.sweep.axes import Asked, Row, as_typed
from launch.sweep.elements import OWN, Element, Sweep, make_sweep, shown
from pretrain.config import RunConfig


@dataclass(frozen=True)
class Cell:
    """Which run. level: None where the experiment has no axis."""

    arm: str
    level: float | None
    seed: int


@dataclass(frozen=True)
class Run:
    """A run of a stage, to be made or made."""

    cell: Cell
    element: Element


def cells_of(experiment: ExperimentConfig, stage: str) -> Iterator[tuple[Cell, Level | None]]:
    """Seed by seed, so that one that is cut short has whole seeds."""
    first = experiment.first_seed
    for seed in range(first, first + experiment.seeds):
        for level in experiment.levels or (None,):
            for arm in experiment.stages[stage].arms:
                yield Cell(arm, None if level is None else level.value, seed), level


def data_of(experiment: ExperimentConfig, stage: str, cell: Cell) -> str:
    """The data set that a run is trained on: its arm's, or its level's, or the stage's."""
    found = experiment.stages[stage]
    of_level = next((each.data for each in experiment.levels if each.value == cell.level), None)
    return found.arms[cell.arm].data or of_level or found.data


def settings_below(experiment: ExperimentConfig) -> dict[str, Any]:
    """The configs that an experiment's settings are laid over, whole, by file: numbers rest on them too."""
    files = dict.fromkeys(stage.train for stage in experiment.stages.values())
    found = {
        file: read_config(shipped_config(file), [], RunConfig).model_dump(mode="json", exclude=OWN)
        for file in files
    }
    sharding = read_config(shipped_config(DEMO), [], DataConfig)
    return found | {DEMO: sharding.model_dump(mode="json", exclude=set(MADE_OF_DATA))}


def stage_runs(
    experiment: ExperimentConfig,
    stage: str,
    folder: Path,
    data: Mapping[str, Path],
    earlier: Mapping[str, Sequence[Run]],
    changes: Sequence[str] = (),
) -> tuple[Sweep, list[Run]]:
    """The sweep of a stage in `folder`/`stage`, and its runs by cell.

    data: shards by name. earlier: runs of the stages before; what would start from one that is not among
    them is left out. changes: KEY=VALUE of all runs, of keys that no arm and no level sets.
    Raises: ConfigError with the problems of all runs at once; UsageError, also when nothing is left.
    """
    found = experiment.stages[stage]
    cells = []
    own = {"out": str(folder), **found.settings, "data.shards": str(data[found.data])}
    rows = []
    for cell, level in cells_of(experiment, stage):
        arm = found.arms[cell.arm]
        settings: Settings = {**({} if level is None else level.settings), **arm.settings, "seed": cell.seed}
        if (own_data := data_of(experiment, stage, cell)) != found.data:
            settings["data.shards"] = str(data[own_data])
        if weights_of := arm.weights_of or found.weights_of:
            start = _run_of(earlier, *weights_of, cell)
            if start is None:
                continue
            settings["init.weights"] = str(start)
        cells.append(cell)
        rows.append(_row(settings))
    if not rows:
        raise UsageError(
            f"no run of {stage} can begin, as none that it starts from has finished; the reasons are above "
            f"and in {shown(folder)}/*/logs"
        )
    fixed = (*(f"{key}={value}" for key, value in _row(own)), *changes)
    sweep = make_sweep(
        str(shipped_config(found.train)),
        Asked(fixed, tuple(rows)),
        name=stage,
        ranks=1,
        shares_store=True,
        group=f"{folder.name}: {stage}",
        home=folder,
    )
    pairs = zip(cells, sweep.elements, strict=True)
    runs = [Run(cell, _called(element, told_of(cell, experiment.axis))) for cell, element in pairs]
    return replace(sweep, elements=tuple(run.element for run in runs)), runs


def told_of(cell: Cell, axis: str | None) -> str:
    """A run in words: `latent, noise 0.8, seed 3`."""
    return f"{cell.arm}{'' if cell.level is None else f', {axis} {cell.level:g}'}, seed {cell.seed}"


def _called(element: Element, name: str) -> Element:
    """Where it is shown by that name, and lies in the folder that it has: names of folders stay."""
    tracker = element.config.tracker.model_copy(update={"run_name": name})
    return replace(element, config=element.config.model_copy(update={"tracker": tracker}))


def _run_of(earlier: Mapping[str, Sequence[Run]], stage: str, arm: str, cell: Cell) -> Path | None:
    wanted = Cell(arm, cell.level, cell.seed)
    return next((each.element.run for each in earlier[stage] if each.cell == wanted), None)


def _row(settings: Settings) -> Row:
    return tuple((key, as_typed(value)) for key, value in settings.items())
