"""Results of one experiment whose seeds were run apart, on several machines or days, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.experiment.kept import Found, config_of
from launch.experiment.plots import Drawn, caption_of, plots_of
from launch.experiment.runs import Cell
from launch.experiment.summary import UNTRAINED, rows_of, spreads_of


def seeds_of(found: Mapping[str, Any]) -> range:
    """The seeds of a result's runs."""
    first = int(found["config"].get("first_seed", 0))
    return range(first, first + int(found["config"]["seeds"]))


def seeds_of_all(results: Sequence[Mapping[str, Any]]) -> list[int]:
    """In ascending order. Raises: ValueError where one is in several."""
    seeds = sorted(seed for found in results for seed in seeds_of(found))
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"seed {', '.join(map(str, twice))} is in more than one of them")
    return seeds


def why_no_part(found: Mapping[str, Any]) -> str | None:
    """Why a result cannot be put together with others; None where it can."""
    if all("seeds" in row for row in found["rows"]):
        return None
    return "an earlier version wrote it: run the same command again, which trains nothing"


def joined(results: Sequence[Found]) -> Found:
    """One result of all their seeds, as if one command had run them; of one alone, that itself.

    They are of the same settings, which the caller has seen to. Means and differences are worked out anew
    from each run's numbers; a curve over steps is the mean of the parts' means, each weighed by its runs.
    Raises: ValueError where seeds are there twice, or some between them are not, or figures differ.
    """
    parts = sorted(results, key=lambda found: seeds_of(found).start)
    seeds = seeds_of_all(parts)
    if absent := sorted(set(range(seeds[0], seeds[-1])) - set(seeds)):
        raise ValueError(f"seed {', '.join(map(str, absent))} is in none of them")
    if len(parts) == 1:
        return parts[0]
    if any(config_of(found).plots != config_of(parts[0]).plots for found in parts):
        raise ValueError("they draw other figures: run the same command on each again, which trains nothing")
    newest = max(parts, key=lambda found: str(found["date"]))
    config = newest["config"] | {"seeds": len(seeds), "first_seed": seeds[0]}
    experiment = config_of(newest).model_copy(update={"seeds": len(seeds), "first_seed": seeds[0]})
    values, untrained = _by_cell(parts)
    names = [each.name for each in experiment.measures]
    spreads = spreads_of(values, untrained, list(experiment.last.arms), names, experiment.against)
    plots = []
    for number, plot in enumerate(experiment.plots):
        if plot.over == "levels":
            plots += plots_of(experiment.model_copy(update={"plots": (plot,)}), {}, spreads, {})
        else:
            plots.append(_plot(plot.caption, [found["plots"][number] for found in parts]))
    return newest | {
        "versions": _versions(parts),
        "commits": sorted({commit for found in parts for commit in found["commits"]}),
        "device": "; ".join(sorted({found["device"] for found in parts})),
        "config": config,
        "seconds": round(sum(found["seconds"] for found in parts), 1),
        "rows": rows_of(spreads, experiment.axis, experiment.against),
        "missing": [each for found in parts for each in found["missing"]],
        "not_asked": [each for found in parts for each in found.get("not_asked", [])],
        "unmeasured": _together(found["unmeasured"] for found in parts),
        "plots": plots,
        "maps": parts[0]["maps"],  # of the first seed
    }


def _by_cell(parts: Sequence[Found]) -> tuple[dict[Cell, dict[str, float]], dict[Cell, dict[str, float]]]:
    """What each run gave, and its encoder before training."""
    values: dict[Cell, dict[str, float]] = {}
    untrained: dict[Cell, dict[str, float]] = {}
    for row in (row for found in parts for row in found["rows"]):
        into = untrained if row["arm"] == UNTRAINED else values
        for seed, value in zip(row["seeds"], row["values"], strict=True):
            into.setdefault(Cell(row["arm"], row["level"], seed), {})[row["metric"]] = value
    return values, untrained


def _together(each: Iterator[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for names in each:
        for name, cells in names.items():
            found.setdefault(name, []).extend(cells)
    return found


def _versions(parts: Sequence[Found]) -> dict[str, str]:
    """Of all of them; of a package that differs, each."""
    names = dict.fromkeys(name for found in parts for name in found["versions"])
    told = {name: dict.fromkeys(found["versions"].get(name, "none") for found in parts) for name in names}
    return {name: ", ".join(each) for name, each in told.items()}


def _plot(caption: str, parts: Sequence[Drawn]) -> Drawn:
    """parts: the same figure of each."""
    panels = []
    for number, panel in enumerate(parts[0]["panels"]):
        every = [curve for plot in parts for curve in plot["panels"][number]["curves"]]
        names = dict.fromkeys(curve["name"] for curve in every)
        curves = [_curve([curve for curve in every if curve["name"] == name]) for name in names]
        panels.append({**panel, "curves": [curve for curve in curves if curve["x"]]})
    return {**parts[0], "caption": caption_of(caption, panels), "panels": panels}


def _curve(parts: Sequence[Drawn]) -> Drawn:
    """At the places that all have: the mean of means, weighed by runs; the lowest and the highest of all."""
    at = [{x: place for place, x in enumerate(curve["x"])} for curve in parts]
    shared = [x for x in parts[0]["x"] if all(x in each for each in at)]
    runs = sum(curve["runs"] for curve in parts)

    def column(key: str, x: float) -> list[float]:
        return [curve[key][each[x]] for curve, each in zip(parts, at, strict=True)]

    sums = [sum(m * curve["runs"] for m, curve in zip(column("mean", x), parts, strict=True)) for x in shared]
    return {
        **parts[0],
        "x": shared,
        "mean": [float(f"{total / runs:.5g}") for total in sums],
        "low": [min(column("low", x)) for x in shared],
        "high": [max(column("high", x)) for x in shared],
        "runs": runs,
    }
