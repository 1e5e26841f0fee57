"""Maps of values over a plane, side by side, as SVG and PDF: energies over actions.

Shapes: G values of each coordinate; rows go up, columns to the right.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.curves import AXIS, INK, new_canvas

Floats = NDArray[np.float64]


WIDTH_IN = 7.0  # a page: three panels beside one another that can be read
COLUMNS = 3
LETTERS = 34  # of a title, as wide as a map
DARK_AND_BRIGHT = ("#440154", "#fde725")  # the ends of viridis
RING: dict[str, Any] = {"marker": "o", "ms": 10, "ls": "none", "clip_on": False}
CROSS: dict[str, Any] = {"marker": "x", "ms": 6, "ls": "none", "clip_on": False}


@dataclass(frozen=True)
class Map:
    """at: (G,), the values of both coordinates. values: (G, G). unit: of values, in words.

    rings, crosses: places (x, y) that are marked so.
    """

    name: str
    at: Floats
    values: Floats
    rings: tuple[tuple[float, float], ...] = ()
    crosses: tuple[tuple[float, float], ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Maps:
    """Maps of one plane. across, up: names of its coordinates, with their unit. ring, cross: words."""

    name: str
    title: str
    caption: str
    maps: tuple[Map, ...]
    across: str
    up: str
    ring: str = "least"
    cross: str = ""

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

    def plain(self) -> dict[str, Any]:
        """As a file keeps it: numbers, lists and words."""
        maps = [
            {
                "name": each.name,
                "at": np.round(each.at, 5).tolist(),
                "values": np.round(each.values, 5).tolist(),
                "rings": [list(place) for place in each.rings],
                "crosses": [list(place) for place in each.crosses],
                "unit": each.unit,
            }
            for each in self.maps
        ]
        words = ("name", "title", "caption", "across", "up", "ring", "cross")
        return {**{key: getattr(self, key) for key in words}, "maps": maps}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Maps:
        """What `plain` gave."""
        maps = tuple(
            Map(
                each["name"],
                np.array(each["at"], float),
                np.array(each["values"], float),
                tuple((float(x), float(y)) for x, y in each["rings"]),
                tuple((float(x), float(y)) for x, y in each["crosses"]),
                each["unit"],
            )
            for each in plain["maps"]
        )
        return cls(**{**plain, "maps": maps})


def draw_maps(maps: Maps, path: Path, ink: str = AXIS) -> None:
    """Write them as the file's ending says: .svg or .pdf; each has a scale of its own, dark is low.

    Raises: OSError.
    """
    count = len(maps.maps)
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    width = WIDTH_IN * columns / COLUMNS + 0.3 * (columns < COLUMNS)
    with new_canvas(path, rows * 3.0 + 0.35, ink) as canvas:
        canvas.set_size_inches(width, rows * 3.0 + 0.35)
        every = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in every.ravel()[count:]:
            ax.set_axis_off()
        for ax, each in zip(every.ravel(), maps.maps, strict=False):
            _draw_map(canvas, ax, each, ink)
        for ax in every[-1]:
            ax.set_xlabel(maps.across)
        for ax in every[:, 0]:
            ax.set_ylabel(maps.up)
        canvas.legend(handles=_legend(maps, ink), loc="outside lower center", ncols=4, frameon=False)


def _draw_map(canvas: Any, ax: Any, each: Map, ink: str) -> None:
    # Edges in the colour of their face leave no gap between neighbours, where a viewer smooths edges.
    mesh = ax.pcolormesh(
        each.at, each.at, each.values, cmap="viridis", shading="nearest", edgecolors="face", linewidth=0.3
    )
    ax.set_aspect("equal")
    # whose it is above what it is, each broken before it reaches the next map
    lines = [line for part in each.name.split(": ") for line in textwrap.wrap(part, LETTERS)]
    ax.set_title("\n".join(lines), fontsize=8)
    for places, look in ((each.rings, RING), (each.crosses, CROSS)):
        for x, y in places:
            for colour, width in ((INK, 3.2), ("white", 1.6)):  # a rim: seen on bright and on dark
                ax.plot([x], [y], **look, mec=colour, mew=width, mfc="none")
    ax.tick_params(width=0.6, length=2.5)
    low, high = float(each.values.min()), float(each.values.max())
    bar = canvas.colorbar(mesh, ax=ax, orientation="horizontal", fraction=0.05, aspect=18, pad=0.03)
    bar.set_ticks([low, high], labels=[f"{low:.3g}", f"{high:.3g}"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(width=0.6, length=2.5)
    bar.solids.set_edgecolor("face")
    bar.set_label(each.unit, labelpad=-6)


def _legend(maps: Maps, ink: str) -> list[Any]:
    """What is dark, and what marks are; drawn in the colour of words, as white is not seen on a page."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dark, bright = DARK_AND_BRIGHT
    found: list[Any] = [Patch(fc=dark, label="dark: low"), Patch(fc=bright, label="bright: high")]
    shown = (
        (maps.ring, RING, any(each.rings for each in maps.maps)),
        (maps.cross, CROSS, any(each.crosses for each in maps.maps)),
    )
    for words, look, is_there in shown:
        if is_there:
            found.append(Line2D([], [], **look, mec=ink, mew=1.4, mfc="none", label=words))
    return found
