"""What a search sees: the energy of every first action, held until the goal's time, beside the true distance.

Shapes: G values tried of each number of an action; rows are ay, columns ax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.maps import Map, Maps
from pretrain.planning.energy import EnergyOf
from pretrain.planning.search import Bounds, Floats
from pretrain.planning.task import Task


@dataclass(frozen=True)
class Landscape:
    """actions: (G,), the values of ax and of ay. energies: by way, (G, G), row by ay, column by ax."""

    actions: Floats
    energies: dict[str, Floats]

    def plain(self) -> dict[str, Any]:
        """As a file keeps it."""
        rows = {way: np.round(energies, 5).tolist() for way, energies in self.energies.items()}
        return {"actions": np.round(self.actions, 5).tolist(), "energies": rows}

    def least(self, way: str) -> tuple[float, float]:
        """The action (ax, ay) of least energy."""
        row, column = np.unravel_index(int(np.argmin(self.energies[way])), self.energies[way].shape)
        return float(self.actions[column]), float(self.actions[row])

    def agreement(self, way: str, other: str) -> float:
        """Rank correlation of two landscapes (Spearman): 1 where they put all actions in the same order."""
        one, two = (
            np.argsort(np.argsort(self.energies[each].ravel())).astype(np.float64) for each in (way, other)
        )
        return float(np.corrcoef(one, two)[0, 1])


def landscape(
    task: Task,
    energies_of: Mapping[str, EnergyOf],
    bounds: Bounds,
    *,
    grid: int = 15,
    steps: int | None = None,
) -> Landscape:
    """Energies over a grid of actions, each held for `steps` moments; None: until the goal's time."""
    steps = steps or task.steps
    actions = np.linspace(bounds.low, bounds.high, grid)
    ay, ax = np.meshgrid(actions, actions, indexing="ij")
    tried = np.stack([ax.ravel(), ay.ravel()], 1)[:, None]  # one decision
    found = {
        way: energy_of(task.begin, task, steps, steps)(tried).reshape(grid, grid)
        for way, energy_of in energies_of.items()
    }
    return Landscape(actions, found)


def maps_of(found: Landscape, name: str, title: str, caption: str) -> Maps:
    """The landscape to be drawn, with its least places ringed."""
    return Maps(
        name,
        title,
        caption,
        tuple(
            Map(way, found.actions, energies, (found.least(way),)) for way, energies in found.energies.items()
        ),
        "ax, widths/s²",
        "ay, widths/s²",
    )
