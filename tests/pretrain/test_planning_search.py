"""CEM and MPPI against functions whose least point is known, and against what their papers write down."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.planning.search import Bounds, Cem, Floats, Mppi, Search
from pretrain.rng import stream

WIDE = Bounds(-3.0, 3.0)
TARGET = np.array([[1.0, -0.5], [0.25, 2.0], [-1.5, 0.0]])
SEARCHES = [Cem(samples=128, turns=12), Mppi(samples=256, turns=25, std=0.6, temperature=0.1)]
start = np.zeros((3, 2))


def bowl(tried: Floats) -> Floats:
    """Convex, with axes of different scale; least, 0, at TARGET."""
    scale = np.array([[1.0, 4.0], [2.0, 1.0], [0.5, 1.0]])
    found: Floats = (scale * (tried - TARGET) ** 2).sum((1, 2))
    return found


def egg_box(tried: Floats) -> Floats:
    """Many hollows (Rastrigin); the deepest, 0, at 0.5 in every number."""
    off = tried - 0.5
    found: Floats = (off**2 + 1.5 * (1 - np.cos(2 * np.pi * off))).sum((1, 2))
    return found


@pytest.mark.parametrize("search", SEARCHES, ids=["cem", "mppi"])
def test_the_least_point_of_a_bowl_is_found(search: Search) -> None:
    found = search(bowl, start, WIDE, stream(0, "test"))
    assert np.abs(found.actions - TARGET).max() < 0.12
    assert found.energy == pytest.approx(float(bowl(found.actions[None])[0]))


@pytest.mark.parametrize(
    "search",
    [
        Cem(samples=400, turns=20, std=1.5, elites=0.05),
        Mppi(samples=2000, turns=40, std=0.9, temperature=0.05),
    ],
    ids=["cem", "mppi"],
)
def test_the_deepest_of_many_hollows_is_found(search: Search) -> None:
    """From a start in another hollow, where a search downhill would end."""
    here = np.full((1, 2), -1.5)
    found = search(egg_box, here, WIDE, stream(1, "test"))
    assert egg_box(here[None])[0] > 5, "another hollow"
    assert np.abs(found.actions - 0.5).max() < 0.25, "the hollows are 1 apart"


@pytest.mark.parametrize("search", SEARCHES, ids=["cem", "mppi"])
def test_no_action_is_out_of_bounds(search: Search) -> None:
    """The least point lies outside: what is found is the nearest within."""
    met: list[Floats] = []

    def energy(tried: Floats) -> Floats:
        met.append(tried)
        return bowl(tried)

    tight = Bounds(-0.5, 0.75)
    found = search(energy, start, tight, stream(2, "test"))
    assert all((tried >= -0.5).all() and (tried <= 0.75).all() for tried in met)
    assert np.abs(found.actions - np.clip(TARGET, -0.5, 0.75)).max() < 0.12


@pytest.mark.parametrize("search", SEARCHES, ids=["cem", "mppi"])
def test_equal_generators_give_equal_plans(search: Search) -> None:
    one, two, other = (search(bowl, start, WIDE, stream(s, "test")) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.actions, two.actions)
    assert one.best == two.best
    assert not np.array_equal(one.actions, other.actions)


@pytest.mark.parametrize("search", SEARCHES, ids=["cem", "mppi"])
def test_the_best_that_was_met_is_never_lost(search: Search) -> None:
    """Of an energy without shape, only the sample that happened to be least is worth keeping."""
    seen: list[float] = []

    def noise(tried: Floats) -> Floats:
        found = np.sin(1e4 * tried.sum((1, 2)))
        seen.extend(found.tolist())
        return found

    found = search(noise, start, WIDE, stream(5, "test"))
    assert found.energy == min(seen)
    assert list(found.best) == sorted(found.best, reverse=True)


def test_one_turn_of_cem_is_the_fit_to_the_elites() -> None:
    """alg. 3.1 of the tutorial, with smoothing: from the same draws, by hand."""
    cem = Cem(samples=20, turns=2, elites=0.2, std=1.5, min_std=0.01, momentum=0.3)
    drawn: list[Floats] = []

    def energy(tried: Floats) -> Floats:
        drawn.append(tried)
        return bowl(tried)

    cem(energy, start, Bounds(-100, 100), stream(6, "test"))
    rng = stream(6, "test")
    first = 1.5 * rng.standard_normal((20, 3, 2))
    np.testing.assert_allclose(drawn[0], first)
    best = sorted(range(20), key=lambda k: bowl(first[k : k + 1])[0])[:4]
    mean, std = 0.7 * first[best].mean(0), 0.3 * 1.5 + 0.7 * first[best].std(0)
    np.testing.assert_allclose(drawn[1], mean + std * rng.standard_normal((20, 3, 2)))


def test_one_turn_of_mppi_is_the_weighted_mean_of_the_noise() -> None:
    """alg. 1 and 2 of the paper: u + sum_k w_k noise_k with w ~ exp(-S / lambda), its control cost in S."""
    mppi = Mppi(samples=16, turns=1, std=0.5, temperature=2.0, relative=False, control_cost=0.4)
    at = np.full((3, 2), 0.2)
    ends: list[Floats] = []

    def energy(tried: Floats) -> Floats:
        ends.append(tried)
        return bowl(tried) if len(tried) > 1 else np.array([-1.0])  # so that the end itself is given

    found = mppi(energy, at, Bounds(-100, 100), stream(7, "test"))
    noise = 0.5 * stream(7, "test").standard_normal((16, 3, 2))
    costs = [float(bowl((at + e)[None])[0] + 0.4 * (at * e).sum() / 0.25) for e in noise]
    weights = [np.exp(-(c - min(costs)) / 2.0) for c in costs]
    expected = at + sum(w * e for w, e in zip(weights, noise, strict=True)) / sum(weights)
    np.testing.assert_allclose(found.actions, expected)


def test_a_relative_temperature_does_not_depend_on_the_unit_of_the_energy() -> None:
    mppi = Mppi(samples=32, turns=3)
    plain = mppi(bowl, start, WIDE, stream(8, "test")).actions
    scaled = mppi(lambda tried: 1000 * bowl(tried) + 7, start, WIDE, stream(8, "test")).actions
    np.testing.assert_allclose(plain, scaled)


def test_bounds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Bounds(1.0, -1.0)
