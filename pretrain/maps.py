"""Maps of values over a plane, side by side, as SVG and PDF: energies over actions.

Shapes: G values of each coordinate; rows go up, columns to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.curves import AXIS, WIDTH_IN, new_canvas

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """at: (G,), the values of both coordinates. values: (G, G). marks: places (x, y) that are ringed."""

    name: str
    at: Floats
    values: Floats
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Maps:
    """Maps of one plane. across, up: names of its coordinates, with their unit."""

    name: str
    title: str
    caption: str
    maps: tuple[Map, ...]
    across: str
    up: str

    @property
    def alt(self) -> str:
        """The maps in words: where each is least, and from what to what its values go."""
        told = []
        for each in self.maps:
            row, column = np.unravel_index(int(np.argmin(each.values)), each.values.shape)
            told.append(
                f"{each.name}: from {each.values.min():.3g} at {self.across} {each.at[column]:.3g}, "
                f"{self.up} {each.at[row]:.3g} to {each.values.max():.3g}"
            )
        return f"{self.title}. {'; '.join(told)}."


def draw_maps(maps: Maps, path: Path, ink: str = AXIS) -> None:
    """Write them as the file's ending says: .svg or .pdf; each has a scale of its own, dark is low.

    Raises: OSError.
    """
    count = len(maps.maps)
    columns = min(count, 3)
    rows = -(-count // columns)
    with new_canvas(path, rows * (WIDTH_IN / columns) * 0.95 + 0.35, ink) as canvas:
        every = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in every.ravel()[count:]:
            ax.set_axis_off()
        for ax, each in zip(every.ravel(), maps.maps, strict=False):
            ax.pcolormesh(each.at, each.at, each.values, cmap="viridis", shading="nearest", rasterized=False)
            ax.set_aspect("equal")
            ax.set_title(each.name, fontsize=7)
            for x, y in each.marks:
                ax.plot([x], [y], "o", ms=5, mfc="none", mec="white", mew=1.2)
            ax.tick_params(width=0.6, length=2.5)
        for ax in every[-1]:
            ax.set_xlabel(maps.across)
        for ax in every[:, 0]:
            ax.set_ylabel(maps.up)
