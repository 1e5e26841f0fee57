"""A world in a moment, how it goes on under an action, and what it looks like.

`step` and `render` are pure: a video is what they give from `begin` on under its recorded actions, so a
planner that tries actions in the true world sees exactly the frames that would have been written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.synthetic import COLOURS, coverage
from data_pipeline.worlds.contrast import MEAN, contrast
from data_pipeline.worlds.leaves import Leaves, begin_leaves, draw_leaves, step_leaves, watched
from data_pipeline.worlds.motion import WALLS, Doubles, move, start, stream
from data_pipeline.worlds.settings import World

Frame = NDArray[np.uint8]
OBJECT_NAMES = ("x", "y", "vx", "vy", "radius", "shape", "colour")
LEAVES_NAMES = ("bvx", "bvy", "b0", "b1", "b2", "b3")
WALLS_NAMES = ("wx", "wy")
STRIPES = 12  # a frame


@dataclass(frozen=True, eq=False)
class Walls:
    """A bar across and one down. place: x and y of their middles (2,). cover: share of each pixel (S, S).
    pattern: (S, S, 3) in levels."""

    place: Doubles
    cover: NDArray[np.float32]
    pattern: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """What stays the same through a video.

    colour: number of the object's. leaves_deviation: in levels; 0 draws plain grey. object_contrast: its
    colour's distance from grey, of the full one.
    """

    world: World
    shape: int
    colour: int
    leaves_deviation: float
    object_contrast: float
    walls: Walls | None


@dataclass(frozen=True, eq=False)
class State:
    """What changes from frame to frame. seed, index: whose wind blows; position, velocity: (2,)."""

    seed: int
    index: int
    frame: int
    position: Doubles
    velocity: Doubles
    radius: float
    leaves: Leaves | None


def begin(world: World, seed: int, index: int) -> tuple[State, Scene]:
    """The first moment of video `index`, and its scene: functions of world, seed and index alone."""
    position, velocity, radius, shape, colour = start(seed, index)
    leaves = begin_leaves(world, seed, index) if world.leaves else None
    strength = contrast(world.leaves)
    walls = _build_walls(world, seed, index) if world.walls else None
    scene = Scene(world, shape, colour, strength.leaves, strength.object, walls)
    return State(seed, index, 0, position, velocity, radius, leaves), scene


def step(world: World, state: State, action: NDArray[np.floating]) -> State:
    """The state a frame later, under an action (2,) that is held until then.

    The action pushes the object; leaves go their own way, the same for any action.
    """
    pushed = np.asarray(action, np.float64)
    position, velocity = move(state.position, state.velocity, state.radius, pushed, world.dt, world.drag)
    frame = state.frame + 1
    leaves = state.leaves
    if leaves is not None:
        leaves = step_leaves(world, leaves, state.seed, state.index, frame)
    return State(state.seed, state.index, frame, position, velocity, state.radius, leaves)


def render(state: State, scene: Scene) -> Frame:
    """The frame of a state: (S, S, 3) uint8 RGB. Leaves, walls before them, the object before both."""
    world = scene.world
    image = np.full((world.size, world.size, 3), MEAN, np.float32)
    if state.leaves is not None and scene.leaves_deviation:
        image += np.float32(scene.leaves_deviation) * draw_leaves(world, state.leaves)
    if scene.walls is not None:
        image += scene.walls.cover[..., None] * (scene.walls.pattern - image)
    centres = np.arange(world.size, dtype=np.float32) + np.float32(0.5)
    x, y = state.position * world.size
    cover = coverage(scene.shape, (centres - x)[None, :], (centres - y)[:, None], state.radius * world.size)
    colour = np.float32(MEAN) + np.float32(scene.object_contrast) * (COLOURS[scene.colour] - np.float32(MEAN))
    image += cover[..., None] * (colour - image)
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def state_names(world: World) -> tuple[str, ...]:
    """Names of what `state_row` tells; of leaves and walls only where a world has them.

    bvx, bvy: drift of the leaves, frame widths a second; b0 to b3: cosine and sine part of their coarsest
    wave along x, then along y, as seen, of variance 1; wx, wy: middles of the upright and the level wall.
    """
    leaves, walls = LEAVES_NAMES if world.leaves else (), WALLS_NAMES if world.walls else ()
    return (*OBJECT_NAMES, *leaves, *walls)


def state_row(state: State, scene: Scene) -> NDArray[np.float32]:
    """The true state in numbers, in the order of `state_names`."""
    row = [*state.position, *state.velocity, state.radius, scene.shape, scene.colour]
    if state.leaves is not None:
        row += [*state.leaves.velocity, *watched(scene.world, state.leaves)]
    if scene.walls is not None:
        row += [*scene.walls.place]
    return np.array(row, np.float32)


def _build_walls(world: World, seed: int, index: int) -> Walls:
    """Two bars of equal width that together cover the share asked for, each in stripes of two colours."""
    rng = stream(seed, index, WALLS)
    width = 1 - np.sqrt(1 - world.walls)
    place = rng.uniform(width / 2, 1 - width / 2, 2)
    at = (np.arange(world.size) + 0.5) / world.size
    upright, level = (np.clip(0.5 - (np.abs(at - p) - width / 2) * world.size, 0, 1) for p in place)
    cover = np.maximum(upright[None, :], level[:, None])
    bright, dark = rng.uniform(170, 255, (2, 3)), rng.uniform(0, 70, (2, 3))
    phase = rng.uniform(0, 1, 2)
    is_bright = [((at * STRIPES + p) % 1.0 < 0.5)[:, None] for p in phase]
    down, across = (np.where(is_bright[k], bright[k], dark[k]) for k in range(2))  # (S, 3)
    pattern = np.where((upright >= 1)[None, :, None], down[:, None], across[None, :])
    return Walls(place, cover.astype(np.float32), pattern.astype(np.float32))
