"""Goals in the simulated world: reachable, as they would be seen, and reached by whoever knows the world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.worlds import World, actions_of, begin, render, step
from pretrain.planning.control import Searching, act, at_random, nothing
from pretrain.planning.energy import oracle_energy
from pretrain.planning.landscape import landscape
from pretrain.planning.search import Bounds, Cem, Found, Mppi, Search
from pretrain.planning.task import Task, held, make_task, moments_later, object_later
from pretrain.rng import stream

WORLD = World(size=32, fps=8, duration_s=3.0, leaves=0.5, band=(1, 4))
BOUNDS = Bounds(-3.2, 3.2)


def task_of(index: int, *, steps: int = 8, stride: int = 1, world: World = WORLD) -> Task:
    return make_task(world, 0, index, told=4, steps=steps, stride=stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_was_told_is_the_beginning_of_the_video(stride: int) -> None:
    """At a stride of 1 the very frames that the world writes; at others the world under the mean actions."""
    task, (state, scene) = task_of(3, stride=stride), begin(WORLD, 0, 3)
    recorded = actions_of(WORLD, 0, 3)
    for moment in range(4):
        np.testing.assert_array_equal(task.begin.frames[moment], render(state, scene))
        if moment == 3:
            break
        mean = recorded[moment * stride : (moment + 1) * stride].astype(np.float64).mean(0)
        np.testing.assert_allclose(task.begin.actions[moment], mean)
        for _ in range(stride):
            state = step(WORLD, state, mean)
    assert len(task.begin.frames) == 4
    assert len(task.begin.actions) == 3


def test_many_objects_move_at_once_as_each_would_alone() -> None:
    task = task_of(1)
    actions = stream(0, "test").normal(0, 2.0, (5, 6, 2))
    together = object_later(WORLD, task.begin.state, actions, 2)
    for one, at in zip(actions, together, strict=True):
        state = task.begin.state
        for action in one:
            state = step(WORLD, step(WORLD, state, action), action)
        np.testing.assert_allclose(at, state.position, atol=1e-12)


@pytest.mark.parametrize("index", range(6))
def test_a_goal_is_away_from_where_nothing_leads_and_shows_the_leaves_of_its_time(index: int) -> None:
    task = task_of(index)
    idle = moments_later(WORLD, task.begin.state, list(np.zeros((8, 2))), 1)
    assert task.distance(idle) >= 0.25
    assert task.distance(task.goal) == 0.0
    np.testing.assert_array_equal(task.picture, render(task.goal, task.begin.scene))
    back = render(replace(task.goal, position=idle.position), task.begin.scene)
    np.testing.assert_array_equal(back, render(idle, task.begin.scene))


@pytest.mark.parametrize("search", [Cem(std=1.6, min_std=0.1), Mppi(std=1.6)], ids=["cem", "mppi"])
def test_who_knows_the_world_reaches_its_goals(search: Search) -> None:
    """The simulator as the model, and the true distance: close, in nearly every task."""
    ends = []
    for index in range(10):
        task = task_of(index)
        decide = Searching(search, oracle_energy(), BOUNDS, hold=2)
        episode = act(task, decide, stream(0, "plan", index), replan=4)
        assert len(episode.distances) == 9
        assert len(episode.plan_ms) == 2
        ends.append(episode.final)
    assert np.median(ends) < 0.03
    assert sum(end < 0.1 for end in ends) >= 9


def test_who_does_nothing_or_anything_does_not() -> None:
    tasks = [task_of(index) for index in range(20)]
    idle = [act(task, nothing, stream(0, "plan"), replan=4).final for task in tasks]
    assert min(idle) >= 0.25
    anything = at_random(BOUNDS, 2)
    ends = [act(task, anything, stream(0, "plan", k), replan=4).final for k, task in enumerate(tasks)]
    assert sum(end < 0.1 for end in ends) <= 4


def test_looking_again_mends_what_a_wrong_model_planned() -> None:
    """A model that forgets half of every push: looking after each moment ends nearer than never."""

    def half(situation, task, hold, moments):  # type: ignore[no-untyped-def]
        energy = oracle_energy()(situation, task, hold, moments)
        return lambda decisions: energy(decisions / 2)

    ends = {}
    for replan in (1, 8):
        found = []
        for index in range(8):
            decide = Searching(Cem(std=1.6, min_std=0.1), half, BOUNDS, hold=2)
            found.append(act(task_of(index), decide, stream(0, "plan", index), replan=replan).final)
        ends[replan] = float(np.mean(found))
    assert ends[1] < 0.6 * ends[8]


def test_a_search_begins_with_what_was_planned_for_each_moment() -> None:
    """Six moments, decisions of two, a look after three: of 1 1 2 2 3 3 are left 2 3 3."""
    starts = []

    def search(energy, start, bounds, rng):  # type: ignore[no-untyped-def]
        starts.append(start)
        return Found(np.repeat(np.arange(1.0, len(start) + 1)[:, None], 2, axis=1), 0.0)

    act(task_of(0, steps=6), Searching(search, oracle_energy(), BOUNDS, hold=2), stream(0, "plan"), replan=3)
    np.testing.assert_array_equal(starts[0], np.zeros((3, 2)))
    np.testing.assert_array_equal(starts[1], [[2.5, 2.5], [3, 3]])


def test_equal_seeds_give_equal_episodes() -> None:
    def run(seed: int) -> tuple[float, ...]:
        decide = Searching(Cem(samples=16, turns=2), oracle_energy(), BOUNDS, hold=2)
        return act(task_of(2), decide, stream(seed, "plan"), replan=4).distances

    assert run(1) == run(1) != run(2)


def test_the_landscape_is_the_distance_that_each_action_leads_to() -> None:
    task = task_of(4)
    found = landscape(task, {"true": oracle_energy()}, BOUNDS, grid=5, steps=6)
    np.testing.assert_allclose(found.actions, [-3.2, -1.6, 0, 1.6, 3.2])
    for row, column in ((0, 0), (1, 3), (4, 2)):
        action = np.array([found.actions[column], found.actions[row]])
        state = task.begin.state
        for _ in range(6):
            state = step(WORLD, state, action)
        assert found.energies["true"][row, column] == pytest.approx(task.distance(state))
    least = found.energies["true"].min()
    ax, ay = found.least("true")
    assert found.energies["true"][list(found.actions).index(ay), list(found.actions).index(ax)] == least
    assert found.agreement("true", "true") == pytest.approx(1.0)


def test_a_video_too_short_for_what_is_told_is_refused() -> None:
    with pytest.raises(ValueError, match="the video has 24 frames"):
        held(actions_of(WORLD, 0, 0), 25, 1)
