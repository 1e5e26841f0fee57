"""Landscapes of a run's first goals, and how far energies agree with the true distance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.worlds import World
from pretrain.planning.energy import MODEL, ORACLE, RENDERED, Eye
from pretrain.planning.landscape import Landscape, landscape
from pretrain.planning.measure import (
    FIRST_TASK,
    PlanningSettings,
    bounds_of,
    check_world,
    energies_of,
    task_of,
)
from pretrain.rollout.model import load_model

SEEN = (MODEL, RENDERED, ORACLE)  # ways of which a landscape is drawn


def landscapes(
    run: Path,
    world: World,
    *,
    tasks: int,
    settings: PlanningSettings | None = None,
    step: int | None = None,
    device: str = "cpu",
) -> list[Landscape]:
    """Of the first goals that planning meets, the energy of every action held until the goal's time.

    Raises: as `measure_planning`.
    """
    settings = settings or PlanningSettings()
    model, config = load_model(run, step, device)
    stride = check_world(str(run), world, config, settings)
    energies = energies_of(Eye(model, config.data.size, settings.told), None)
    return [
        landscape(
            task_of(world, config.seed, number, settings, stride),
            {way: energies[way] for way in SEEN},
            bounds_of(world, settings),
        )
        for number in range(FIRST_TASK, FIRST_TASK + tasks)
    ]


def agreements(found: Sequence[Landscape]) -> dict[str, float]:
    """Rank correlations with the true distance, a mean over goals, by name: `planning agreement: model`."""
    return {
        f"planning agreement: {way}": statistics.fmean(each.agreement(way, ORACLE) for each in found)
        for way in SEEN
        if way != ORACLE
    }
