"""What a search sees: the energy of every first action, held until the goal's time, beside the true distance.

Shapes: G values tried of each number of an action; rows are ay, columns ax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.maps import Map, Maps
from pretrain.planning.energy import DECODED, ORACLE, EnergyOf
from pretrain.planning.search import Bounds, Floats
from pretrain.planning.task import Task

ACROSS = ("ax, widths/s²", "ay, widths/s²")
DISTANCE, FEATURES = "distance, widths", "of features, L1"  # what the colours of a panel tell


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
        """Rank correlation of two landscapes (Spearman): 1 where they put all actions in the same order.

        0 where one of them is flat: it tells no action from another.
        """
        one, two = (_ranks(self.energies[each].ravel()) for each in (way, other))
        if one.std() == 0 or two.std() == 0:
            return 0.0
        return float(np.corrcoef(one, two)[0, 1])


def _ranks(values: Floats) -> Floats:
    """The place of each among all; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return found


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


def maps_of(found: Landscape, of: str = "") -> tuple[Map, ...]:
    """The landscape to be drawn: where each is least has a ring, the action that truly ends nearest a cross.

    of: whose, in words.
    """
    best = (found.least(ORACLE),) if ORACLE in found.energies else ()
    return tuple(
        Map(
            f"{of}: {way}" if of else way,
            found.actions,
            energies,
            (found.least(way),),
            best,
            DISTANCE if way in (ORACLE, DECODED) else FEATURES,
        )
        for way, energies in found.energies.items()
    )


def energy_maps(name: str, title: str, moments: int, maps: tuple[Map, ...]) -> Maps:
    """A figure of landscapes. moments: for how long each action is held, which is until the goal's time."""
    caption = (
        f"One goal. Each place of a panel is an action, held for the {moments} frames until the goal's time; "
        "its colour is how far from the goal that ends, by what the panel's name says. Dark is near. Each "
        "panel has a scale of its own, below it. A ring: the action that the panel takes for the best. A "
        "cross: the one that truly ends nearest. A good energy is dark where the oracle's is."
    )
    return Maps(name, title, caption, maps, *ACROSS, ring="least here", cross="truly nearest")
