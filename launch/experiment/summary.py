"""Mean and spread over seeds of what an experiment's runs gave, and what they differ from one arm by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.experiment.runs import Cell

Values = Mapping[Cell, Mapping[str, float]]
UNTRAINED = "untrained encoder"
# Student's t, two-sided 95 %, by degrees of freedom (any table of it). Beyond, the last: a little too wide.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)


@dataclass(frozen=True)
class Spread:
    """Of one measure of an arm at a level, over seeds. sd: nan of one seed. seeds: that `values` are of.

    difference: the mean of (this - the arm that is compared with), seed by seed; half: of its 95 % interval,
    by Student's t. Both None for that arm itself, and where fewer than two seeds have both.
    """

    arm: str
    level: float | None
    measure: str
    values: tuple[float, ...]
    difference: float | None = None
    half: float | None = None
    seeds: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.difference is not None and self.half is not None and abs(self.difference) > self.half


def spreads_of(
    values: Values, untrained: Values, arms: Sequence[str], measures: Sequence[str], against: str | None
) -> list[Spread]:
    """Of every arm, level and measure that has a value. The untrained encoder is a row beside the arms.

    untrained: of each run's own encoder before training; of a seed it counts once a level.
    """
    found = []
    levels = sorted({cell.level for cell in values}, key=lambda level: (level is not None, level or 0.0))
    for level in levels:
        for arm in arms:
            for measure in measures:
                own = _by_seed(values, arm, level, measure)
                if not own:
                    continue
                other = _by_seed(values, against, level, measure) if against not in (None, arm) else {}
                found.append(
                    Spread(arm, level, measure, tuple(own.values()), *compared(own, other), seeds=tuple(own))
                )
        for measure in measures:
            before: dict[int, float] = {}
            for cell, each in untrained.items():
                if cell.level == level and measure in each:
                    before.setdefault(cell.seed, each[measure])
            if before:
                other = _by_seed(values, against, level, measure)
                apart = compared(before, other)
                found.append(
                    Spread(UNTRAINED, level, measure, tuple(before.values()), *apart, seeds=tuple(before))
                )
    return found


def _by_seed(values: Values, arm: str | None, level: float | None, measure: str) -> dict[int, float]:
    return {
        cell.seed: each[measure]
        for cell, each in sorted(values.items(), key=lambda pair: pair[0].seed)
        if cell.arm == arm and cell.level == level and measure in each
    }


def compared(own: Mapping[int, float], other: Mapping[int, float]) -> tuple[float | None, float | None]:
    """The mean difference of the seeds that both have, and half of its 95 % interval."""
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    if len(differences) < 2:
        return None, None
    t = T_95[min(len(differences) - 1, len(T_95)) - 1]
    return statistics.fmean(differences), t * statistics.stdev(differences) / math.sqrt(len(differences))


def spreads_in(rows: Iterable[Mapping[str, Any]]) -> list[Spread]:
    """Back from the rows of a result."""
    return [
        Spread(
            row["arm"],
            row["level"],
            row["metric"],
            tuple(row["values"]),
            row["difference"],
            row["half"],
            tuple(row.get("seeds", ())),
        )
        for row in rows
    ]


def rows_of(spreads: Sequence[Spread], axis: str | None, against: str | None) -> list[dict[str, Any]]:
    """As a results file keeps them: `ours` is the mean, `reference` that of the arm compared with."""
    means = {(each.arm, each.level, each.measure): each.mean for each in spreads}
    rows = []
    for each in spreads:
        at = "" if each.level is None else f", {axis} {each.level:g}"
        row = {
            "case": f"{each.arm}{at}",
            "metric": each.measure,
            "unit": "",
            "ours": each.mean,
            "reference": means.get((against or "", each.level, each.measure)),
            "reference_name": against,
            "ratio": None,
            "min": min(each.values),
            "max": max(each.values),
            "n": len(each.values),
            "sd": None if math.isnan(each.sd) else each.sd,
            "difference": each.difference,
            "half": each.half,
            "arm": each.arm,
            "level": each.level,
            "values": list(each.values),
            "seeds": list(each.seeds),
        }
        rows.append(row)
    return rows


def grouped(measures: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Digits by name, by the group that a measure is shown in. measures: as a result's config keeps them."""
    found: dict[str, dict[str, int]] = {}
    for each in measures:
        found.setdefault(each.get("group", ""), {})[each["name"]] = each["digits"]
    return found


def all_tables(spreads: Sequence[Spread], groups: Mapping[str, Mapping[str, int]], axis: str | None) -> str:
    """The tables of every group, one below the other, each under its name."""
    parts = []
    for group, own, measures in in_groups(spreads, groups):
        parts += [*([f"{group}:"] if group else []), markdown(own, measures, axis)]
    return "\n\n".join(parts)


def in_groups(
    spreads: Sequence[Spread], groups: Mapping[str, Mapping[str, int]]
) -> Iterator[tuple[str, list[Spread], Mapping[str, int]]]:
    """Each group that has numbers: its name, its spreads, digits of its measures."""
    for group, measures in groups.items():
        if own := [each for each in spreads if each.measure in measures]:
            yield group, own, measures


def markdown(spreads: Sequence[Spread], measures: Mapping[str, int], axis: str | None) -> str:
    """A table a level: arms by measures, mean ± standard deviation over seeds.

    measures: digits by name. A star: differs from the arm compared with by more than its 95 % interval.
    """
    lines: list[str] = []
    for level in dict.fromkeys(each.level for each in spreads):
        if level is not None:
            lines += ["", f"{axis} {level:g}:", ""]
        head, rows = cells_of_level([each for each in spreads if each.level == level], measures, spreads)
        lines += [f"| {' | '.join(head)} |".replace("|  |", "| |"), "|---|" + "---:|" * (len(head) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines).strip()


def cells_of_level(
    spreads: Sequence[Spread], measures: Mapping[str, int], every: Sequence[Spread] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The head of a level's table and a row an arm, of words. every: whose measures it has; None: its own."""
    shown = [name for name in measures if any(each.measure == name for each in every or spreads)]
    by = {(each.arm, each.measure): each for each in spreads}
    rows = []
    for arm in dict.fromkeys(each.arm for each in spreads):
        own = [by.get((arm, name)) for name in shown]
        counts = sorted({len(each.values) for each in own if each is not None})
        seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        rows.append(
            [arm, *(cell(each, measures[name]) for name, each in zip(shown, own, strict=True)), seeds]
        )
    return ["", *shown, "seeds"], rows


def cell(spread: Spread | None, digits: int) -> str:
    """`0.12 ± 0.03`, with a star where it differs."""
    if spread is None:
        return "–"
    star = "*" if spread.is_told_apart else ""
    sd = "" if math.isnan(spread.sd) else f" ± {spread.sd:.{digits}f}"
    return f"{spread.mean:.{digits}f}{sd}{star}"
