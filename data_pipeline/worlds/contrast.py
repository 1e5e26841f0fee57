"""How strong leaves and object are drawn, so that the leaves' share of the variance is what a world asks for.

With cover c and colour d above the mean grey of the object, and leaves b of variance v, a pixel is
(1 - c) b + c d. Leaves are independent of the object and of mean 0, so its variance is exactly
E[(1 - c)^2] v + Var(c d): what is asked for is a ratio of the two.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline.synthetic import COLOURS, SHAPES, coverage
from data_pipeline.worlds.motion import RADII

MEAN = 120.0  # grey of the leaves' mean, in levels of 255
MAX_DEVIATION = 42.0  # of the leaves, in levels: beyond, whites and blacks would be cut off
PLACES, SIZES, SIDE = 7, 3, 64


class Contrast(NamedTuple):
    """leaves: their standard deviation, in levels. object: its colours' distance from MEAN, 1 at most."""

    leaves: float
    object: float


def contrast(leaves: float) -> Contrast:
    """Of a world with this share of leaves. The object is at full contrast up to a share of about 0.8;
    beyond, leaves would be too strong for 8 bits, and it fades in their place."""
    bare, of_object = _moments()
    variance = leaves / (1 - leaves) * of_object / bare
    fade = min(1.0, MAX_DEVIATION / math.sqrt(variance)) if variance else 1.0
    return Contrast(fade * math.sqrt(variance), fade)


@lru_cache(maxsize=1)
def _moments() -> tuple[float, float]:
    """E[(1 - c)^2] and Var(c d) of an object at full contrast, means over pixels and colours.

    Over all shapes and colours, radii and places as they are drawn, these two on a grid.
    """
    centres = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) / SIDE
    radii = RADII[0] + (np.arange(SIZES) + 0.5) / SIZES * (RADII[1] - RADII[0])
    covers = []
    for radius in radii:
        places = radius + (np.arange(PLACES) + 0.5) / PLACES * (1 - 2 * radius)
        for shape in range(len(SHAPES)):
            for x in places:
                for y in places:
                    across, down = (centres - x)[None, :] * SIDE, (centres - y)[:, None] * SIDE
                    covers.append(coverage(shape, across, down, radius * SIDE))
    c = np.stack(covers).astype(np.float64)
    above = COLOURS.astype(np.float64) - MEAN
    of_object = (c**2).mean(0)[..., None] * (above**2).mean(0) - (c.mean(0)[..., None] * above.mean(0)) ** 2
    return float(((1 - c) ** 2).mean()), float(of_object.mean())
