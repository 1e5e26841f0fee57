"""What is asked of runs when they have ended, beyond what they logged: numbers by name."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.errors import UsageError
from data_pipeline.worlds import World
from launch.experiment.config import ExperimentConfig
from launch.experiment.data import shard_config
from launch.experiment.measured import Evaluated
from launch.experiment.runs import Run, data_of

if TYPE_CHECKING:
    from pretrain.config import RunConfig
    from pretrain.planning.measure import PlanningSettings
    from pretrain.planning.search import Cem, Mppi

OnPart = Callable[[int, int], None]
"""(parts done, parts in all), told as an evaluation goes."""
FEWEST_CLIPS = 8
AS_TRAINED = "as trained"
TOLD, FORESEEN = 4, 16  # frames of a rollout
# Frames until the goal, frames between searches, the greatest action in deviations of the world's pushes.
STEPS, REPLAN, PUSH = 6, 3, 1.0
AGREE = 8  # first goals in which energies are compared with the true distance


class Evaluation(NamedTuple):
    """ask: what a run gives. settings: of the evaluation itself, as a result keeps them."""

    ask: Callable[[ExperimentConfig, Run, Mapping[str, Path], OnPart], Evaluated]
    settings: Callable[[ExperimentConfig], dict[str, Any]]


def _rollout(
    experiment: ExperimentConfig, run: Run, shards: Mapping[str, Path], on_part: OnPart
) -> Evaluated:
    """Errors of foreseen frames, on clips of the run's world with the true actions, whatever it was told.

    Beside each row of true actions one `as trained`: of a run that was told none, on the same clips without
    any, those seen before too. What it would make of true ones nobody has taught it.
    """
    from pretrain.rollout import measure_rollout
    from pretrain.rollout.measure import TRUE

    probe = run.element.config.probe

    clips, train_clips = max(FEWEST_CLIPS, probe.eval_clips), max(FEWEST_CLIPS, probe.train_clips)

    def on(data: str) -> dict[str, float]:
        return measure_rollout(
            run.element.run,
            str(shards[data]),
            told=TOLD,
            steps=FORESEEN,
            clips=clips,
            train_clips=train_clips,
            on_clip=_counted(clips + train_clips, on_part),
        ).measures()

    own = _data_of(experiment, run)
    found = on(_with_true_actions(experiment, run))
    world = experiment.data[own].world
    told = on(own) if world is not None and world.actions == "zero" else found
    rows = {name.removesuffix(TRUE): value for name, value in told.items() if name.endswith(f": {TRUE}")}
    return Evaluated(found | {f"{name}{AS_TRAINED}": value for name, value in rows.items()})


def _with_true_actions(experiment: ExperimentConfig, run: Run) -> str:
    """The data set of the run's videos whose recorded actions are the true ones. Raises: UsageError."""
    name = _data_of(experiment, run)
    spec = experiment.data[name]
    if spec.world is None:
        return name
    wanted = spec.model_copy(update={"world": spec.world.model_copy(update={"actions": "true"})})
    found = next((each for each, other in experiment.data.items() if other == wanted), None)
    if found is None:
        raise UsageError(
            f"evaluate is rollout, and the actions in data.{name} are {spec.world.actions}: runs are asked "
            f"about true ones; give the experiment a data set that differs in `actions: true` alone"
        )
    return found


def _planning(
    experiment: ExperimentConfig, run: Run, shards: Mapping[str, Path], on_part: OnPart
) -> Evaluated:
    """Goals reached in the world of the stage's data set; of the model's own energy by both searches.

    How far energies agree with the true distance is of the first goals; the landscape of the first is kept.
    """
    from pretrain.planning.agreement import agreements, landscapes
    from pretrain.planning.energy import MODEL
    from pretrain.planning.landscape import energy_maps, maps_of
    from pretrain.planning.measure import WAYS, measure_planning

    world = _world_of(experiment, run)
    cem, mppi = _searches(world)
    acting = partial(
        measure_planning,
        run.element.run,
        world,
        episodes=experiment.episodes,
        settings=_planned(),
        on_episode=_counted(2 * experiment.episodes, on_part),
    )
    found = acting(ways=WAYS, search=cem).measures()
    other = acting(ways=(MODEL,), search=mppi).measures()
    seen = landscapes(run.element.run, world, tasks=min(AGREE, experiment.episodes), settings=_planned())
    maps = energy_maps("energy", "Energies of the first goal", STEPS, maps_of(seen[0]))
    numbers = found | {f"{name}, mppi": value for name, value in other.items()} | agreements(seen)
    return Evaluated(numbers, maps.plain())


def _causes(experiment: ExperimentConfig, run: Run, shards: Mapping[str, Path], on_part: OnPart) -> Evaluated:
    """What its features vary by, on videos of its own world that nobody was trained on."""
    from pretrain.causes import measure_causes

    world, seed = _world_of(experiment, run), experiment.data[_data_of(experiment, run)].seed
    return Evaluated(measure_causes(run.element.run, world, seed=seed))


def _data_of(experiment: ExperimentConfig, run: Run) -> str:
    return data_of(experiment, list(experiment.stages)[-1], run.cell)


def _world_of(experiment: ExperimentConfig, run: Run) -> World:
    found = experiment.data[_data_of(experiment, run)].world
    assert found is not None, "checked before any run"
    return found


def _counted(total: int, on_part: OnPart) -> Callable[[], None]:
    """To be called after each part."""
    done = itertools.count(1)
    return lambda: on_part(next(done), total)


def _planned() -> PlanningSettings:
    from pretrain.planning.measure import PlanningSettings

    return PlanningSettings(steps=STEPS, replan=REPLAN, push=PUSH)


def _searches(world: World) -> tuple[Cem, Mppi]:
    """With as many samples and turns; both begin with the deviation of the world's own pushes."""
    from pretrain.planning.search import Cem, Mppi

    return Cem(std=world.push, min_std=0.1 * world.push), Mppi(std=world.push)


def check_evaluation(experiment: ExperimentConfig, runs: Sequence[Run]) -> None:
    """Whether the runs of the last stage will be such as can be asked. Raises: UsageError."""
    if experiment.evaluate is None:
        return
    from pretrain.causes import check_causes
    from pretrain.planning.measure import check_world
    from pretrain.rollout.model import check_foresees

    for run in runs:
        config = run.element.config
        if experiment.evaluate == "causes":
            who = f"evaluate is causes, and the data of {run.cell.arm!r}"
            check_causes(who, experiment.data[_data_of(experiment, run)].world, config)
            continue
        who = f"evaluate is {experiment.evaluate}, and {run.cell.arm!r} of the last stage"
        check_foresees(config, who)
        if experiment.evaluate == "planning":
            check_world(who, _world_of(experiment, run), config, _planned())
        else:
            _check_long_enough(experiment, _with_true_actions(experiment, run), config)


def _check_long_enough(experiment: ExperimentConfig, name: str, config: RunConfig) -> None:
    """Raises: UsageError where clips of a data set are shorter than a rollout."""
    sharding = shard_config(name, Path(name), experiment.data[name])
    length_s = sharding.num_frames(sharding.cut.length_s) / sharding.encode.fps
    frames = TOLD + FORESEEN
    if sharding.cut.kind != "spans" and length_s * config.data.fps < frames - 0.5:
        raise UsageError(
            f"evaluate is rollout, which wants {frames} frames at {config.data.fps:g} a second, and clips of "
            f"data.{name} last {length_s:g} s: need data.{name}.shard.cut.length_s of "
            f"{frames / config.data.fps:g}, in videos as long"
        )


def _asked_of_rollout(experiment: ExperimentConfig) -> dict[str, Any]:
    return {"told": TOLD, "steps": FORESEEN}


def _asked_of_planning(experiment: ExperimentConfig) -> dict[str, Any]:
    from pretrain.planning.measure import AWAY, FIRST_READ, FIRST_TASK, READ_FRAMES, READ_VIDEOS

    world = experiment.data[experiment.last.data].world
    assert world is not None, "checked before any run"
    searches = {type(each).__name__: asdict(each) for each in _searches(world)}
    return {
        "planning": asdict(_planned()),
        "episodes": experiment.episodes,
        "first task": FIRST_TASK,
        "positions read from": {"first": FIRST_READ, "videos": READ_VIDEOS, "frames": READ_FRAMES},
        "away": list(AWAY),
        "goals of which energies are compared": AGREE,
        "searches": searches,
    }


def _asked_of_causes(experiment: ExperimentConfig) -> dict[str, Any]:
    from pretrain.causes import PAIRS

    return {"pairs": PAIRS}


EVALUATIONS: dict[str, Evaluation] = {
    "rollout": Evaluation(_rollout, _asked_of_rollout),
    "planning": Evaluation(_planning, _asked_of_planning),
    "causes": Evaluation(_causes, _asked_of_causes),
}


def asked_of(experiment: ExperimentConfig) -> dict[str, Any] | None:
    """The settings of what its runs are asked; None where they are asked nothing."""
    return None if experiment.evaluate is None else EVALUATIONS[experiment.evaluate].settings(experiment)


def digest_of(experiment: ExperimentConfig) -> str:
    """Of all that an evaluation depends on beside the run: what was found under another is found anew."""
    data = {name: spec.model_dump(mode="json") for name, spec in experiment.data.items()}
    plain = json.dumps([data, experiment.evaluate, asked_of(experiment)], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
