"""Maps that an evaluation has drawn of runs, such as energies over actions: a row of one figure each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.experiment.runs import Cell
from pretrain.maps import Maps, draw_maps

Kept = dict[str, Any]
"""A figure of maps as a results file keeps it."""


def maps_of_arms(found: Mapping[Cell, Kept | None], axis: str | None) -> list[Kept]:
    """One figure of the first seed of each arm at each level, in the order of `found`; none without maps."""
    first: dict[tuple[str, float | None], tuple[int, Maps]] = {}
    for cell, kept in found.items():
        if kept is None:
            continue
        known = first.get((cell.arm, cell.level))
        if known is None or cell.seed < known[0]:
            first[cell.arm, cell.level] = cell.seed, Maps.of(kept)
    if not first:
        return []
    every = []
    for (arm, level), (seed, maps) in first.items():
        of = f"{arm}{'' if level is None else f', {axis} {level:g}'}, seed {seed}"
        every += [replace(each, name=f"{of}: {each.name}") for each in maps.maps]
    one = next(iter(first.values()))[1]
    return [replace(one, maps=tuple(every)).plain()]


def file_name(maps: Kept, name: str) -> str:
    """Of an experiment's figure: `planning-energy.svg`."""
    return f"{name}-{maps['name']}.svg"


def draw_all_maps(every: Sequence[Kept], name: str, folder: Path) -> list[Path]:
    """An SVG of each. Raises: OSError."""
    paths = []
    for kept in every:
        path = folder / file_name(kept, name)
        draw_maps(Maps.of(kept), path)
        paths.append(path)
    return paths
