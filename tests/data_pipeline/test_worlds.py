import dataclasses
import hashlib
import math

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from data_pipeline.synthetic import MAX_SPEED, _bounce, generator, render_frames, render_texture, simulate
from data_pipeline.worlds import World, actions_of, begin, move, render, state_names, state_row, step
from data_pipeline.worlds.leaves import begin_leaves, draw_leaves, numbers, seen, step_leaves
from data_pipeline.worlds.settings import MAX_LEAVES


def test_the_demo_is_what_it_was_byte_for_byte() -> None:
    found = hashlib.sha256()
    for index in (0, 1):
        rng = generator(0, index)
        states, actions = simulate(rng, 24)
        frames = render_frames(states, render_texture(rng, 128), 64)
        for part in (states, actions, frames):
            found.update(np.ascontiguousarray(part).tobytes())
    assert found.hexdigest() == "a74bdd4e01c0118c43e4d489b1d660dbb2a809a39b71f3fb1036dde53c87eb7c"


@pytest.mark.parametrize("leaves", [0.1, 0.5, 0.8, MAX_LEAVES])
def test_leaves_are_the_share_of_the_variance_that_was_asked_for(leaves: float) -> None:
    """Frames as they are, and the same with the leaves held at their mean: what of the variance goes?"""
    world = World(size=32, leaves=leaves, duration_s=8.0, fps=1.0)
    whole, held = [], []
    for index in range(150):
        state, scene = begin(world, 5, index)
        still = dataclasses.replace(scene, leaves_deviation=0.0)
        for action in actions_of(world, 5, index):
            whole.append(render(state, scene))
            held.append(render(state, still))
            state = step(world, state, action)
    of_all, of_object = (np.stack(f).astype(np.float64).var(0).mean() for f in (whole, held))
    found = 1 - of_object / of_all
    assert abs(found - leaves) < 0.03
    assert abs((1 - found) / (1 - leaves) - 1) < 0.15  # near 1 too it is no accident


def test_without_leaves_the_background_is_one_grey() -> None:
    state, scene = begin(World(size=32, leaves=0.0), 0, 0)
    assert state.leaves is None
    corner = render(state, scene)[np.array([0, 0, -1, -1]), np.array([0, -1, 0, -1])]
    assert np.ptp(corner) == 0


@pytest.mark.parametrize(("leaves_s", "lag"), [(0.5, 1), (0.5, 4), (2.0, 8), (0.0, 1), (None, 20)])
def test_leaves_resemble_themselves_as_long_as_asked(leaves_s: float | None, lag: int) -> None:
    world = World(size=32, leaves_s=leaves_s, drift=0.0, fps=10.0)
    pairs = []
    for index in range(150):
        leaves = later = begin_leaves(world, 2, index)
        for frame in range(1, lag + 1):
            later = step_leaves(world, later, 2, index, frame)
        pairs.append((draw_leaves(world, leaves), draw_leaves(world, later)))
    before, after = (np.stack(side).ravel().astype(np.float64) for side in zip(*pairs, strict=True))
    expected = 1.0 if leaves_s is None else math.exp(-lag * 0.1 / leaves_s) if leaves_s else 0.0
    assert np.corrcoef(before, after)[0, 1] == pytest.approx(expected, abs=0.04)


def test_leaves_that_never_change_are_moved_by_their_drift() -> None:
    world = World(size=32, leaves_s=None, fps=8.0)
    leaves = begin_leaves(world, 0, 3)
    leaves = dataclasses.replace(
        leaves, velocity=np.array([2 * 8 / 32, -5 * 8 / 32])
    )  # 2 and -5 pixels a frame
    moved = draw_leaves(world, step_leaves(world, leaves, 0, 3, 1))
    np.testing.assert_allclose(moved, np.roll(draw_leaves(world, leaves), (-5, 2), (0, 1)), atol=1e-4)


def test_drift_has_the_spread_asked_for_and_changes_smoothly() -> None:
    world = World(drift=0.2, drift_s=1.0, fps=10.0)
    first, later = [], []
    for index in range(400):
        leaves = begin_leaves(world, 1, index)
        first.append(leaves.velocity)
        for frame in range(1, 6):
            leaves = step_leaves(world, leaves, 1, index, frame)
        later.append(leaves.velocity)
    assert np.std(first) == pytest.approx(0.2, rel=0.1)
    assert np.std(later) == pytest.approx(0.2, rel=0.1)
    assert np.corrcoef(np.ravel(first), np.ravel(later))[0, 1] == pytest.approx(math.exp(-0.5), abs=0.08)


def test_a_texture_is_the_sum_of_its_waves() -> None:
    world = World(size=32, band=(1, 3))
    leaves = begin_leaves(world, 0, 0)
    n_K2, s_K = numbers(world.band)
    lengths = np.hypot(*n_K2.T)
    assert len(n_K2) == 14  # half of the lattice points of 1 <= |n| <= 3
    assert np.all((lengths >= 1) & (lengths <= 3))
    y, x = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(32) + 0.5) / 32, indexing="ij")
    fields = np.zeros((4, 32, 32))
    for (nx, ny), s, a_C in zip(n_K2, s_K, leaves.waves.T, strict=True):
        angle = 2 * np.pi * (nx * (x - leaves.offset[0]) + ny * (y - leaves.offset[1]))
        fields += s * (a_C.real[:, None, None] * np.cos(angle) - a_C.imag[:, None, None] * np.sin(angle))
    expected = np.sqrt(0.8) * fields[0][..., None] + np.sqrt(0.2) * np.moveaxis(fields[1:], 0, -1)
    np.testing.assert_allclose(draw_leaves(world, leaves), expected, atol=1e-4)


def test_leaves_have_variance_one_at_every_pixel_and_colour() -> None:
    world = World(size=32)
    drawn = np.stack([draw_leaves(world, begin_leaves(world, 0, index)) for index in range(600)])
    np.testing.assert_allclose(drawn.var(0).mean((0, 1)), 1.0, atol=0.05)
    assert abs(drawn.mean()) < 0.02


def test_the_waves_told_are_those_in_the_picture() -> None:
    """Cosine and sine parts of the pictures' lowest waves, by projection, beside b0 to b3."""
    world = World(size=32, leaves=0.9)
    at = 2 * np.pi * (np.arange(32) + 0.5) / 32
    told, found = [], []
    for index in range(80):
        state, scene = begin(world, 0, index)
        assert state.leaves is not None
        told.append(state_row(state, scene)[-4:])
        grey = draw_leaves(world, state.leaves).mean(-1)
        across, down = grey.mean(0), grey.mean(1)
        found.append([across @ np.cos(at), -across @ np.sin(at), down @ np.cos(at), -down @ np.sin(at)])
    told_nS, found_nS = np.stack(told), np.array(found)
    for column in range(4):  # the tints, a fifth of the variance, are no part of what is told
        assert np.corrcoef(told_nS[:, column], found_nS[:, column])[0, 1] > 0.9
    assert told_nS.std() == pytest.approx(1.0, abs=0.12)


def test_the_object_moves_as_in_the_demo() -> None:
    rng, dt = np.random.default_rng(0), 1 / 16
    position, velocity = rng.uniform(0.2, 0.8, (50, 2)), rng.uniform(-0.7, 0.7, (50, 2))
    radius = rng.uniform(0.1, 0.16, 50)
    ours, kept = (position, velocity), [(p.copy(), v.copy()) for p, v in zip(position, velocity, strict=True)]
    for _ in range(40):
        actions = rng.normal(0, 3, (50, 2))
        ours = move(*ours, radius, actions, dt)
        for k, (p, v) in enumerate(kept):
            v = v + actions[k] * dt
            speed = float(np.hypot(*v))
            v = v * MAX_SPEED / speed if speed > MAX_SPEED else v
            moved = [_bounce(a + b * dt, b, radius[k], 1 - radius[k]) for a, b in zip(p, v, strict=True)]
            kept[k] = np.array([m[0] for m in moved]), np.array([m[1] for m in moved])
    np.testing.assert_allclose(ours[0], [p for p, _ in kept], atol=1e-9)
    np.testing.assert_allclose(ours[1], [v for _, v in kept], atol=1e-9)


def test_with_much_drag_an_action_is_a_displacement() -> None:
    world = World(size=32, fps=8.0, drag=100.0, leaves=0)
    state, _ = begin(world, 0, 3)
    middle = dataclasses.replace(state, position=np.array([0.5, 0.5]))
    moved = step(world, step(world, middle, np.zeros(2)), np.array([4.0, -2.0]))
    np.testing.assert_allclose(moved.position - 0.5, np.array([4.0, -2.0]) / 64, atol=1e-5)
    farthest = step(world, step(world, middle, np.zeros(2)), np.array([30.0, 40.0]))
    np.testing.assert_allclose(farthest.position - 0.5, np.array([0.6, 0.8]) * 1.2 / 8, atol=1e-5)
    slowly = move(np.full(2, 0.5), np.array([0.4, 0.0]), 0.1, np.zeros(2), 0.5, drag=2 * np.log(2))
    np.testing.assert_allclose(slowly[1], [0.2, 0.0])


def test_a_step_is_pure_and_leaves_do_not_heed_the_action() -> None:
    world = World(size=32)
    state, scene = begin(world, 0, 0)
    row = state_row(state, scene)
    left, right = step(world, state, np.array([-3.0, 0])), step(world, state, np.array([3.0, 0]))
    assert np.array_equal(state_row(state, scene), row)
    assert left.velocity[0] < right.velocity[0]
    assert left.leaves is not None
    assert right.leaves is not None
    assert np.array_equal(seen(world, left.leaves), seen(world, right.leaves))
    again = step(world, state, np.array([3.0, 0]))
    assert np.array_equal(render(again, scene), render(right, scene))


def test_worlds_of_one_seed_move_alike_whatever_their_leaves_and_walls() -> None:
    rows = []
    for world in (
        World(size=32, leaves=0.0),
        World(size=32, leaves=0.9, leaves_s=0.0),
        World(size=32, walls=0.3),
    ):
        state, scene = begin(world, 4, 2)
        for action in actions_of(world, 4, 2)[:10]:
            state = step(world, state, action)
        rows.append(state_row(state, scene)[:7])
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_walls_stand_still_differ_between_videos_and_cover_their_share() -> None:
    world = World(size=64, walls=0.3)
    shares, places = [], []
    for index in range(12):
        state, scene = begin(world, 0, index)
        assert scene.walls is not None
        shares.append(scene.walls.cover.mean())
        row = dict(zip(state_names(world), state_row(state, scene), strict=True))
        places.append((row["wx"], row["wy"]))
        is_wall, before = scene.walls.cover == 1, render(state, scene)
        for action in actions_of(world, 0, index)[:8]:
            state = step(world, state, action)
        after = render(state, scene)
        far = np.ones((64, 64), bool)
        for shown in (before, after):  # but for where the object passes
            far &= np.abs(shown.astype(int) - scene.walls.pattern).max(-1) <= 1
        assert (far & is_wall).sum() > 0.6 * is_wall.sum()
        columns, rows = scene.walls.cover.mean(0) == 1, scene.walls.cover.mean(1) == 1
        assert abs((np.nonzero(columns)[0].mean() + 0.5) / 64 - row["wx"]) < 0.02
        assert abs((np.nonzero(rows)[0].mean() + 0.5) / 64 - row["wy"]) < 0.02
    assert np.mean(shares) == pytest.approx(0.3, abs=0.01)
    assert len(set(places)) == 12


def test_states_are_named_by_what_a_world_has() -> None:
    for world in (World(leaves=0.0), World(), World(walls=0.2)):
        state, scene = begin(world, 0, 0)
        assert len(state_row(state, scene)) == len(state_names(world))
    assert state_names(World(leaves=0.0)) == ("x", "y", "vx", "vy", "radius", "shape", "colour")
    assert state_names(World(walls=0.2))[7:] == ("bvx", "bvy", "b0", "b1", "b2", "b3", "wx", "wy")


def test_a_world_stands_in_yaml_as_it_is() -> None:
    written = yaml.safe_load("{leaves: 0.8, leaves_s: .inf, actions: true, band: [1, 6]}")
    world = World.model_validate(written)
    assert (world.leaves_s, world.actions, world.band) == (None, "true", (1, 6))
    assert World.model_validate_json(world.model_dump_json()) == world
    assert World.model_validate(yaml.safe_load(yaml.safe_dump(world.model_dump(mode="json")))) == world


@pytest.mark.parametrize(
    "wrong",
    [{"leaves": 0.99}, {"leave": 0.5}, {"leaves_s": -1}, {"leaves_s": math.nan}, {"size": 33},
     {"band": (3, 2)}, {"band": (1, 30)}, {"walls": 0.9}, {"actions": False}, {"duration_s": 0.25, "fps": 2}],
)  # fmt: skip
def test_what_no_world_can_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        World.model_validate(wrong)
