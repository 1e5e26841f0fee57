"""The leaves: a texture of waves that drifts with a smooth random velocity while every wave changes by AR(1).

A field is f(p) = Re sum_n s_n a_n exp(2 pi i n . (p - offset)) over integer waves n of a band, s_n ~ 1 / |n|,
of variance 1. Each a_n is a complex Ornstein-Uhlenbeck process, so that a best guess of the next frame is
known: the picture moved by the drift and faded by the correlation. There are four fields, grey and a tint of
each colour. The picture repeats after one frame's width.

Shapes: K waves, S pixels a side; C fields (grey, red, green, blue).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.worlds.motion import LEAVES, stream
from data_pipeline.worlds.settings import World

Doubles = NDArray[np.float64]
Waves = NDArray[np.complex128]
NUM_FIELDS = 4
GREY_SHARE = 0.8  # of the variance of a colour; the rest is its own tint
WATCHED = ((1, 0), (0, 1))  # waves in x and y, whose coefficients are told, times the band's coarsest


@dataclass(frozen=True, eq=False)
class Leaves:
    """velocity, offset: (2,), in x and y. waves: (C, K) complex, real and imaginary parts of variance 1."""

    velocity: Doubles
    offset: Doubles
    waves: Waves


@lru_cache(maxsize=16)
def numbers(band: tuple[int, int]) -> tuple[NDArray[np.int64], Doubles]:
    """The waves of a band, one of each pair n and -n: periods a frame in x and y (K, 2), and s_n (K,)."""
    low, high = band
    x, y = np.meshgrid(np.arange(0, high + 1), np.arange(-high, high + 1), indexing="ij")
    n_K2 = np.stack([x.ravel(), y.ravel()], 1)
    is_first = (n_K2[:, 0] > 0) | (n_K2[:, 1] > 0)
    length = np.hypot(*n_K2.T)
    n_K2 = n_K2[is_first & (length >= low) & (length <= high)]
    power = 1.0 / (n_K2**2).sum(1)
    return n_K2, np.sqrt(power / power.sum())


def begin_leaves(world: World, seed: int, index: int) -> Leaves:
    """The leaves of the first frame, drawn from where the process settles."""
    rng = stream(seed, index, LEAVES, 0)
    count = len(numbers(world.band)[0])
    velocity, offset = world.drift * rng.normal(size=2), rng.uniform(0, 1, 2)
    return Leaves(velocity, offset, _normal(rng, count))


def _normal(rng: np.random.Generator, count: int) -> Waves:
    parts = rng.normal(size=(2, NUM_FIELDS, count))
    waves: Waves = parts[0] + 1j * parts[1]
    return waves


def step_leaves(world: World, leaves: Leaves, seed: int, index: int, frame: int) -> Leaves:
    """The leaves of `frame`, from those of the frame before; the wind is that of video `index`."""
    rng = stream(seed, index, LEAVES, frame)
    stays = np.exp(-world.dt / world.drift_s)
    velocity = stays * leaves.velocity + np.sqrt(1 - stays**2) * world.drift * rng.normal(size=2)
    offset = (leaves.offset + leaves.velocity * world.dt) % 1.0
    waves = leaves.waves
    if world.leaves_s is not None:
        kept = correlation(world)
        waves = kept * waves + np.sqrt(1 - kept**2) * _normal(rng, waves.shape[1])
    return Leaves(velocity, offset, waves)


def correlation(world: World) -> float:
    """Of a wave, seen from what drifts, with itself in the next frame: exp(-dt / leaves_s)."""
    if world.leaves_s is None:
        return 1.0
    return float(np.exp(-world.dt / world.leaves_s)) if world.leaves_s > 0 else 0.0


def seen(world: World, leaves: Leaves) -> Waves:
    """The waves (C, K) where they stand in the frame."""
    turned: Waves = leaves.waves * np.exp(-2j * np.pi * (numbers(world.band)[0] @ leaves.offset))
    return turned


def watched(world: World, leaves: Leaves) -> Doubles:
    """Real and imaginary part of the grey field's coarsest wave in x and in y, as seen: (4,)."""
    n_K2, low = numbers(world.band)[0], world.band[0]
    found = [int(np.nonzero((n_K2 == (low * x, low * y)).all(1))[0][0]) for x, y in WATCHED]
    waves = seen(world, leaves)[0, found]
    return np.stack([waves.real, waves.imag], 1).ravel()


@lru_cache(maxsize=16)
def _basis(band: tuple[int, int], size: int) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """exp(2 pi i n p) at the pixels' centres: of y (S, 2 high + 1), of x (high + 1, S)."""
    at, high = (np.arange(size) + 0.5) / size, band[1]
    y = np.exp(2j * np.pi * at[:, None] * np.arange(-high, high + 1)[None])
    x = np.exp(2j * np.pi * np.arange(high + 1)[:, None] * at[None])
    return y.astype(np.complex64), x.astype(np.complex64)


def draw_leaves(world: World, leaves: Leaves) -> NDArray[np.float32]:
    """The texture (S, S, 3), each colour of mean 0 and variance 1."""
    (n_K2, s_K), high = numbers(world.band), world.band[1]
    table = np.zeros((NUM_FIELDS, 2 * high + 1, high + 1), np.complex64)
    table[:, n_K2[:, 1] + high, n_K2[:, 0]] = seen(world, leaves) * s_K
    y, x = _basis(world.band, world.size)
    rows = table @ x  # (C, 2 high + 1, S)
    fields = y.real @ rows.real - y.imag @ rows.imag
    mixed = np.sqrt(GREY_SHARE) * fields[:1] + np.sqrt(1 - GREY_SHARE) * fields[1:]
    return np.ascontiguousarray(np.moveaxis(mixed, 0, -1), np.float32)
