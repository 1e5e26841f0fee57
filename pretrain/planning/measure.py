"""How often goals are reached by searching through a model, beside what knows less and what knows more.

Every way of deciding meets the same tasks, searches with the same settings, and draws from a stream of its
own; so ways are compared task by task.

Shapes: E episodes, n moments of an episode.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.synthetic import ACTION_NAMES
from data_pipeline.worlds import World, simulated, state_names
from pretrain.config import RunConfig
from pretrain.planning.control import Decide, Episode, Searching, act, at_random, nothing
from pretrain.planning.energy import (
    DECODED,
    MODEL,
    ORACLE,
    RENDERED,
    EnergyOf,
    Eye,
    decoded_energy,
    model_energy,
    oracle_energy,
    rendered_energy,
)
from pretrain.planning.search import Bounds, Cem, Floats, Search
from pretrain.planning.task import Task, make_task
from pretrain.rng import stream
from pretrain.rollout.model import check_foresees, load_model
from pretrain.rollout.position import PositionDecoder, at_places, fit_decoder

RANDOM, NOTHING = "random actions", "no action"
FIRST_TASK = 100_000  # number of its video, beyond those that a model was trained on
# Of which a reading of positions is learned: the number of the first video, how many, frames of each.
FIRST_READ, READ_VIDEOS, READ_FRAMES = 200_000, 160, 5
WAYS = (MODEL, DECODED, RENDERED, ORACLE, RANDOM, NOTHING)
AWAY = (0.3, 0.4, 0.5)  # frame widths: a third of the goals lies about each, in a world of strong pushes


@dataclass(frozen=True)
class PlanningSettings:
    """What an episode is.

    told: frames seen before. steps: moments until the goal's time. replan: moments between searches. hold:
    moments that a decision lasts. far: frame widths between the goal and where doing nothing ends, at least.
    reach: frame widths within which a goal counts as reached. push: the greatest action, in standard
    deviations of the world's own; a search begins with a deviation of one.
    """

    told: int = 4
    steps: int = 8
    replan: int = 4
    hold: int = 2
    far: float = 0.25
    reach: float = 0.1
    push: float = 2.0


@dataclass(frozen=True)
class Planning:
    """Episodes by way, in the order of the tasks."""

    settings: PlanningSettings
    episodes: dict[str, tuple[Episode, ...]]

    def success(self, way: str) -> float:
        """Share of the episodes that end within reach of the goal."""
        return statistics.fmean(each.final <= self.settings.reach for each in self.episodes[way])

    def distance(self, way: str) -> Floats:
        """Mean distance to the goal at the start and after each moment: (n + 1,), frame widths."""
        found: Floats = np.mean([each.distances for each in self.episodes[way]], axis=0)
        return found

    def plan_ms(self, way: str) -> float:
        """Median time of an episode's first search, which looks furthest: later ones have less to foresee."""
        return statistics.median(each.plan_ms[0] for each in self.episodes[way])

    def goals_by_distance(self) -> dict[float, int]:
        """How many goals were about so many frame widths away at the start: the same for every way."""
        return {away: len(each) for away, each in self._by_distance(next(iter(self.episodes))).items()}

    def success_by_distance(self, way: str) -> dict[float, float]:
        """Share reached of the goals that were about so many frame widths away at the start: of `AWAY`, each
        goal counts to the nearest. Those without a goal are left out.
        """
        by_distance = self._by_distance(way).items()
        return {
            away: statistics.fmean(each.final <= self.settings.reach for each in some)
            for away, some in by_distance
            if some
        }

    def _by_distance(self, way: str) -> dict[float, list[Episode]]:
        found: dict[float, list[Episode]] = {away: [] for away in AWAY}
        for each in self.episodes[way]:
            found[min(AWAY, key=lambda away: abs(away - each.distances[0]))].append(each)
        return found

    def measures(self) -> dict[str, float]:
        """One number a name, such as `planning reached: model`, in the words of `foreframe plan`'s table.

        `planning distance 0: model` is that at the start, `planning distance 1: model` after one moment;
        `planning reached, 0.4 away: model` of the goals that were about 0.4 frame widths away, of which
        there are `planning goals 0.4 away`.
        """
        by_distance = self.goals_by_distance().items()
        found: dict[str, float] = {f"planning goals {away:g} away": count for away, count in by_distance}
        for way in self.episodes:
            found[f"planning reached: {way}"] = self.success(way)
            for away, reached in self.success_by_distance(way).items():
                found[f"planning reached, {away:g} away: {way}"] = reached
            distances = self.distance(way).tolist()
            found[f"planning distance at the end: {way}"] = distances[-1]
            for moment, distance in enumerate(distances):
                found[f"planning distance {moment}: {way}"] = distance
            if way not in (RANDOM, NOTHING):
                found[f"planning ms a search: {way}"] = self.plan_ms(way)
        return found


def measure_planning(
    run: Path,
    world: World,
    *,
    episodes: int = 24,
    search: Search | None = None,
    settings: PlanningSettings | None = None,
    ways: Sequence[str] = WAYS,
    seed: int | None = None,
    first: int = FIRST_TASK,
    step: int | None = None,
    device: str = "cpu",
    on_episode: Callable[[], None] = lambda: None,
) -> Planning:
    """Let each way act in the same tasks, of a run's model in a world.

    search: None for CEM. seed: of tasks and searches; None: the run's. first: number of the first task's
    video. No data set is read: the reading of positions is learned from other videos of the world.
    Raises: UsageError when the world's clock or actions do not fit the run's, or a way is not known; errors
    of `load_model`.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UsageError(f"ways has {unknown[0]!r}: need some of {', '.join(WAYS)}")
    settings = settings or PlanningSettings()
    model, config = load_model(run, step, device)
    stride = check_world(str(run), world, config, settings)
    seed = config.seed if seed is None else seed
    search = search or Cem(std=world.push, min_std=0.1 * world.push)
    eye = Eye(model, config.data.size, settings.told)
    decoder = fit_reading(eye, world, seed) if DECODED in ways else None
    bounds = bounds_of(world, settings)
    found: dict[str, list[Episode]] = {way: [] for way in ways}
    for number in range(first, first + episodes):
        task = task_of(world, seed, number, settings, stride)
        for way in ways:
            decide = _decide(way, eye, decoder, search, bounds, settings.hold)
            rng = stream(seed, "plan", way, number)
            found[way].append(act(task, decide, rng, replan=settings.replan))
        on_episode()
    return Planning(settings, {way: tuple(each) for way, each in found.items()})


def check_world(who: str, world: World, config: RunConfig, settings: PlanningSettings) -> int:
    """Whether a run can act in a world; frames of the world a moment of the model.

    who: the run, in words. Raises: UsageError.
    """
    size = check_foresees(config, who).action_size
    if size != len(ACTION_NAMES):
        raise UsageError(
            f"{who} was trained on actions of {size} numbers: those of a world have "
            f"{len(ACTION_NAMES)} ({', '.join(ACTION_NAMES)})"
        )
    stride = stride_of(world, config)
    if world.push == 0:
        raise UsageError("the world's push is 0: there is no action to search for; give it a push")
    past = (settings.told - 1) * stride
    if past > world.num_frames:
        raise UsageError(
            f"videos of the world have {world.num_frames} frames, and a task begins after {past}: need a "
            f"longer duration_s"
        )
    return stride


def task_of(world: World, seed: int, number: int, settings: PlanningSettings, stride: int) -> Task:
    """The task of one video."""
    return make_task(
        world, seed, number, told=settings.told, steps=settings.steps, stride=stride, far=settings.far
    )


def bounds_of(world: World, settings: PlanningSettings) -> Bounds:
    """What an action may be."""
    return Bounds(-settings.push * world.push, settings.push * world.push)


def stride_of(world: World, config: RunConfig) -> int:
    """Frames of the world a moment of the model. Raises: UsageError."""
    stride = round(world.fps / config.data.fps)
    if stride < 1 or abs(stride * config.data.fps - world.fps) > 1e-6 * world.fps:
        raise UsageError(
            f"the world has {world.fps} frames a second, and the run saw {config.data.fps}: need a whole "
            f"number of the world's for each of the run's"
        )
    return stride


def energies_of(eye: Eye, decoder: PositionDecoder | None) -> dict[str, EnergyOf]:
    """Every energy there is, by way; the decoded one where there is a decoder."""
    found = {MODEL: model_energy(eye), RENDERED: rendered_energy(eye), ORACLE: oracle_energy()}
    return found if decoder is None else found | {DECODED: decoded_energy(eye, decoder)}


def _decide(
    way: str, eye: Eye, decoder: PositionDecoder | None, search: Search, bounds: Bounds, hold: int
) -> Decide:
    if way == NOTHING:
        return nothing
    if way == RANDOM:
        return at_random(bounds, hold)
    return Searching(search, energies_of(eye, decoder)[way], bounds, hold)


def fit_reading(eye: Eye, world: World, seed: int) -> PositionDecoder:
    """Where the object is, read from features: learned from frames as the agent sees them, not compressed."""
    features, where = [], []
    xy = [state_names(world).index(name) for name in ("x", "y")]
    for number in range(FIRST_READ, FIRST_READ + READ_VIDEOS):
        frames, states, _ = simulated(world, seed, number)
        some = np.linspace(0, len(frames) - 1, READ_FRAMES).round().astype(int)
        features.append(at_places(eye.see(frames[some])[None], eye.model.places))
        where.append(states[None, some][..., xy].astype(np.float64))
    return fit_decoder(features, where, eye.model.places)
