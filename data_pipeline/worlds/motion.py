"""How the object moves: pushed by an action on every frame, reflected at the borders of the frame.

Positions are shares of the frame (x to the right, y down), velocities frame widths a second, actions frame
widths a second squared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.synthetic import COLOURS, MAX_SPEED, SHAPES, START_SPEED
from data_pipeline.worlds.settings import World

Doubles = NDArray[np.float64]
RADII = (0.10, 0.16)
# What a random stream is for: one that takes more numbers leaves the others as they are.
OBJECT, ACTIONS, LEAVES, WALLS = range(4)


def stream(seed: int, index: int, purpose: int, *coordinates: int) -> np.random.Generator:
    """The random stream of video `index` for one purpose: a function of its arguments alone."""
    return np.random.Generator(np.random.PCG64([seed, index, purpose, *coordinates, 0x3047D]))


def move(
    position: Doubles,
    velocity: Doubles,
    radius: Doubles | float,
    action: Doubles,
    dt: float,
    drag: float = 0.0,
) -> tuple[Doubles, Doubles]:
    """Position and velocity `dt` seconds later, under an action held for that time.

    position, velocity, action: (..., 2); radius: (...,). drag: rate at which velocity dies, 1/s. The object's
    centre stays `radius` away from the borders; the speed is at most MAX_SPEED. Any number of objects at
    once, as a planner wants them.
    """
    velocity = velocity * np.exp(-drag * dt) + action * dt
    speed = np.hypot(velocity[..., 0], velocity[..., 1])[..., None]
    velocity = velocity * (MAX_SPEED / np.maximum(speed, MAX_SPEED))
    low = np.asarray(radius, np.float64)[..., None]
    moved, high = position + velocity * dt, 1.0 - low
    below, above = moved < low, moved > high
    moved = np.where(below, 2 * low - moved, np.where(above, 2 * high - moved, moved))
    back = np.where(below, np.abs(velocity), np.where(above, -np.abs(velocity), velocity))
    return np.clip(moved, low, high), back


def start(seed: int, index: int) -> tuple[Doubles, Doubles, float, int, int]:
    """Position, velocity, radius, shape and colour of the object in the first frame of video `index`."""
    rng = stream(seed, index, OBJECT)
    shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    radius = float(rng.uniform(*RADII))
    position, heading = rng.uniform(radius, 1.0 - radius, 2), rng.uniform(0, 2 * np.pi)
    velocity = rng.uniform(*START_SPEED) * np.array([np.cos(heading), np.sin(heading)])
    return position, velocity, radius, shape, colour


def actions_of(world: World, seed: int, index: int) -> NDArray[np.float32]:
    """The actions that move video `index`: (F, 2), of each frame until the next; each held for `hold_s`."""
    rng = stream(seed, index, ACTIONS)
    hold = max(1, round(world.hold_s * world.fps))
    pushes = rng.normal(0, world.push, (world.num_frames // hold + 2, 2))
    first = int(rng.integers(hold))
    return np.repeat(pushes, hold, axis=0)[first : first + world.num_frames].astype(np.float32)
