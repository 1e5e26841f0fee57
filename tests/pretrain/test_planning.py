"""Planning through a trained run: what each way knows, the same tasks for all, and refusals by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UsageError
from data_pipeline.worlds import World, render, simulated, state_names
from launch.train import run_train
from pretrain.data.augment import eval_view
from pretrain.planning import measure
from pretrain.planning.agreement import agreements, landscapes
from pretrain.planning.control import Episode, Searching, act, at_random
from pretrain.planning.energy import (
    DECODED,
    MODEL,
    ORACLE,
    RENDERED,
    Eye,
    model_energy,
    oracle_energy,
    rendered_energy,
)
from pretrain.planning.landscape import Landscape
from pretrain.planning.measure import (
    FIRST_TASK,
    NOTHING,
    RANDOM,
    WAYS,
    Planning,
    PlanningSettings,
    fit_reading,
    measure_planning,
    stride_of,
)
from pretrain.planning.search import Bounds, Cem
from pretrain.planning.task import make_task, moments_later
from pretrain.rng import stream
from pretrain.rollout import load_model
from tests.pretrain.test_rollout import ACTION
from tests.small_dataset import tiny_config, write_dataset

WORLD = World(size=32, fps=8, duration_s=3.0, leaves=0.0, band=(1, 4))
BOUNDS = Bounds(-3.2, 3.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("planning") / "data", {"train": [12], "eval": [9]})
    return run_train(tiny_config(root, tmp_path_factory.mktemp("runs"), **ACTION), quiet=True).run


@pytest.fixture(scope="module")
def eye(run: Path) -> Eye:
    return Eye(load_model(run)[0], 32, 4)


def test_the_energy_of_a_model_is_how_far_its_rollout_ends_from_the_goals_picture(eye: Eye) -> None:
    """One sequence at a time, and actions written out moment by moment."""
    task = make_task(WORLD, 0, 5, told=4, steps=5)
    decisions = stream(0, "test").normal(0, 1.6, (3, 3, 2))
    found = model_energy(eye)(task.begin, task, 2, 5)(decisions)
    past = eye.model.read(eval_view(np.stack(task.begin.frames), 32)[None])
    goal = eye.model.read(torch.from_numpy(task.picture)[None, None])[0, 0]
    for plan, energy in zip(decisions, found, strict=True):
        moments = [plan[0], plan[0], plan[1], plan[1], plan[2]]
        actions = torch.tensor(np.array([*task.begin.actions, *moments]), dtype=torch.float32)[None]
        end = eye.model.roll(past, actions)[0, -1]
        assert energy == pytest.approx(float((end - goal).abs().mean()), rel=1e-4)


def test_the_energy_of_a_model_without_fault_is_zero_where_it_ends_as_in_the_picture(eye: Eye) -> None:
    task = make_task(WORLD, 0, 5, told=4, steps=4)
    decisions = stream(1, "test").normal(0, 1.6, (4, 2, 2))
    found = rendered_energy(eye)(task.begin, task, 2, 4)(decisions)
    for plan, energy in zip(decisions, found, strict=True):
        state = moments_later(WORLD, task.begin.state, list(np.repeat(plan, 2, axis=0)), 1)
        seen = eye.model.read(
            torch.from_numpy(np.stack([render(state, task.begin.scene), task.picture]))[None]
        )[0]
        assert energy == pytest.approx(float((seen[0] - seen[1]).abs().mean()), rel=1e-4)
    assert (found > 0).all()


def test_a_model_without_fault_reaches_goals_by_pictures_alone(eye: Eye) -> None:
    """The simulator as the predictor, an encoder that learned next to nothing, no state: near the goals."""
    ends: dict[str, list[float]] = {"search": [], "random": []}
    for index in range(8):
        task = make_task(WORLD, 0, index, told=4, steps=6, far=0.2)
        search = Searching(
            Cem(samples=48, turns=5, std=1.6, min_std=0.16), rendered_energy(eye), BOUNDS, hold=2
        )
        ends["search"].append(act(task, search, stream(0, "plan", index), replan=3).final)
        ends["random"].append(act(task, at_random(BOUNDS, 2), stream(0, "plan", index), replan=3).final)
    assert np.median(ends["search"]) < 0.1
    assert np.mean(ends["search"]) < 0.5 * np.mean(ends["random"])


def test_the_position_is_read_from_frames_as_the_agent_sees_them(eye: Eye) -> None:
    """Of videos that the reading was not learned from: within a pixel or two, far nearer than the mean."""
    read = fit_reading(eye, WORLD, 0)
    said, true = [], []
    for index in range(24):
        frames, states, _ = simulated(WORLD, 0, FIRST_TASK + index)
        said.append(read(eye.see(frames[::6])[None])[0])
        true.append(states[::6, [state_names(WORLD).index(name) for name in ("x", "y")]])
    away = np.hypot(*(np.concatenate(said) - np.concatenate(true)).T)
    blind = np.hypot(*(np.concatenate(true).mean(0) - np.concatenate(true)).T)
    assert np.sqrt((away**2).mean()) < 0.25 * np.sqrt((blind**2).mean())


def test_the_time_of_a_search_is_that_of_the_first_of_an_episode() -> None:
    """Later ones look less far: a median over all would be of neither."""
    times = ((4.0, 1.0), (6.0, 1.0), (9.0, 7.0))
    found = Planning(PlanningSettings(), {MODEL: tuple(Episode((0.5, 0.1, 0.0), each) for each in times)})
    assert found.plan_ms(MODEL) == found.measures()[f"planning ms a search: {MODEL}"] == 6.0


def test_every_way_meets_the_same_tasks_and_equal_seeds_give_equal_numbers(run: Path) -> None:
    settings = PlanningSettings(steps=4, replan=2)
    search = Cem(samples=8, turns=2, std=1.6, min_std=0.16)
    one, two = (measure_planning(run, WORLD, episodes=2, search=search, settings=settings) for _ in range(2))
    assert set(one.episodes) == set(WAYS)
    starts = {tuple(each.distances[0] for each in one.episodes[way]) for way in WAYS}
    assert len(starts) == 1
    assert one.episodes == two.episodes
    assert one.distance(MODEL).shape == (5,)
    names = one.measures()
    assert names[f"planning distance at the end: {NOTHING}"] >= settings.far
    assert names[f"planning reached: {NOTHING}"] == 0
    assert (
        names[f"planning distance at the end: {ORACLE}"] < names[f"planning distance at the end: {NOTHING}"]
    )
    assert f"planning ms a search: {RANDOM}" not in names
    assert {f"planning ms a search: {way}" for way in (MODEL, DECODED, RENDERED, ORACLE)} <= set(names)


def test_goals_are_told_by_how_far_they_were() -> None:
    """Two of five within reach: one of two about 0.3 away, none about 0.4, one of three at 0.5 or more."""
    pairs = [(0.2, 0.05), (0.9, 0.5), (0.5, 0.05), (0.34, 0.4), (0.6, 0.3)]
    found = Planning(PlanningSettings(), {MODEL: tuple(Episode(each, ()) for each in pairs)})
    assert found.success(MODEL) == pytest.approx(2 / 5)
    assert found.goals_by_distance() == {0.3: 2, 0.4: 0, 0.5: 3}
    assert found.success_by_distance(MODEL) == {0.3: pytest.approx(1 / 2), 0.5: pytest.approx(1 / 3)}
    two = Planning(PlanningSettings(), {NOTHING: (Episode((0.5, 0.4), ()), Episode((0.7, 0.8), ()))})
    assert two.measures() == pytest.approx(
        {
            "planning goals 0.3 away": 0,
            "planning goals 0.4 away": 0,
            "planning goals 0.5 away": 2,
            f"planning reached: {NOTHING}": 0.0,
            f"planning reached, 0.5 away: {NOTHING}": 0.0,
            f"planning distance at the end: {NOTHING}": 0.6,
            f"planning distance 0: {NOTHING}": 0.6,
            f"planning distance 1: {NOTHING}": 0.6,
        }
    )


def test_energies_are_compared_with_the_true_distance_in_each_of_the_first_goals(run: Path) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    settings = PlanningSettings(steps=3)
    found = landscapes(run, WORLD, tasks=2, settings=settings)
    each = []
    for number, seen in enumerate(found):
        task = make_task(WORLD, 0, FIRST_TASK + number, told=4, steps=3)
        truth = oracle_energy()(task.begin, task, 3, 3)
        ax, ay = np.meshgrid(seen.actions, seen.actions)
        expected = truth(np.stack([ax.ravel(), ay.ravel()], 1)[:, None])
        np.testing.assert_allclose(seen.energies[ORACLE].ravel(), expected)
        each.append(stats.spearmanr(seen.energies[MODEL].ravel(), expected).statistic)
    told = agreements(found)
    assert told["planning agreement: model"] == pytest.approx(np.mean(each))
    assert set(told) == {"planning agreement: model", "planning agreement: true world, latent"}


def test_a_flat_landscape_agrees_with_none() -> None:
    flat = Landscape(np.arange(3.0), {"flat": np.ones((3, 3)), "some": np.arange(9.0).reshape(3, 3)})
    assert flat.agreement("flat", "some") == 0.0
    assert flat.agreement("some", "some") == pytest.approx(1.0)


def test_a_way_that_is_not_asked_for_costs_nothing(run: Path) -> None:
    found = measure_planning(run, WORLD, episodes=1, ways=(ORACLE, NOTHING))
    assert set(found.episodes) == {ORACLE, NOTHING}, "and no reading of positions is learned"


def test_what_does_not_fit_is_refused_by_name(run: Path) -> None:
    with pytest.raises(UsageError, match="'luck': need some of model"):
        measure_planning(run, WORLD, ways=("luck",))
    with pytest.raises(UsageError, match=r"12\.0 frames a second, and the run saw 8\.0"):
        measure_planning(run, WORLD.model_copy(update={"fps": 12.0}))


def test_a_run_of_other_actions_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = load_model(run)
    objective = config.objective.model_copy(update={"action_size": 7})
    config = config.model_copy(update={"objective": objective})
    monkeypatch.setattr(measure, "load_model", lambda *_: (replace(model, action_size=7), config))
    with pytest.raises(UsageError, match=r"actions of 7 numbers: those of a world have 2 \(ax, ay\)"):
        measure_planning(run, WORLD)


def test_a_moment_of_the_model_is_a_whole_number_of_frames(run: Path) -> None:
    config = load_model(run)[1]
    assert stride_of(WORLD, config) == 1
    assert stride_of(WORLD.model_copy(update={"fps": 24.0}), config) == 3
