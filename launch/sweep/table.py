"""What a sweep came to: a line an element; mean and spread of those that differ in nothing but the seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from launch.console import make_table
from launch.panel import DASH
from launch.run_files import printable
from launch.status import WORDS, Status
from launch.sweep.elements import Sweep, short_keys, shown
from launch.sweep.local import state_of

SEED = "seed"


@dataclass(frozen=True)
class Outcome:
    """Of one element. settings: by key, of those that differ. probe: of the last probing. None: not known."""

    name: str
    settings: dict[str, str]
    word: str
    step: int | None = None
    loss: float | None = None
    probe: float | None = None
    verdict: str | None = None


def outcomes_of(sweep: Sweep) -> list[Outcome]:
    found = []
    for element in sweep.elements:
        status = state_of(element)
        settings = {key: value for key, value in element.settings if key in sweep.keys}
        if status is None:
            found.append(Outcome(element.name, settings, "not begun"))
            continue
        probe = _probe(status)
        found.append(
            Outcome(
                element.name,
                settings,
                status.state.word,
                status.figures.step or None,
                status.figures.loss,
                probe,
                None if status.verdict is None else status.verdict[0],
            )
        )
    return found


def _probe(status: Status) -> float | None:
    """Of the last probing the score that the best checkpoint is kept by, else the mean of all."""
    scores = status.folder.probes[-1].scores if status.folder.probes else {}
    if status.best_by is not None and status.best_by in scores:
        return scores[status.best_by]
    return statistics.fmean(scores.values()) if scores else None


def tables_of(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Table]:
    """Of the elements; and of the seeds, where several were tried of the same settings."""
    short = short_keys(sweep.keys)
    rows: list[list[str | Text]] = [
        [
            Text(each.name.partition("-")[0]),
            *(Text(printable(each.settings.get(key, "—"))) for key in sweep.keys),
            Text(each.word, WORDS.get(each.word, "bold yellow" if each.word != "not begun" else "dim")),
            DASH if each.step is None else f"{each.step:,}",
            _number(each.loss),
            _number(each.probe),
            DASH if each.verdict is None else Text(printable(each.verdict)),
        ]
        for each in outcomes
    ]
    heads = [short[key] for key in sweep.keys]
    tables = [make_table("", ["run", *heads, "state", "step", "loss", "probe", "health"], rows)]
    if seeds := over_seeds(sweep, outcomes):
        keys = [key for key in sweep.keys if key != SEED]
        lines: list[list[str | Text]] = [
            [
                *(Text(printable(settings.get(key, "—"))) for key in keys or [SEED]),
                str(len(members)),
                _spread([each.loss for each in members]),
                _spread([each.probe for each in members]),
            ]
            for settings, members in seeds
        ]
        heads = [short[key] for key in keys] or [SEED]
        tables.append(
            make_table("Over seeds: mean ± standard deviation", [*heads, "runs", "loss", "probe"], lines)
        )
    return tables


def over_seeds(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[tuple[dict[str, str], list[Outcome]]]:
    """Finished elements that differ in nothing but the seed, with what they share; [] without two of them."""
    if SEED not in sweep.keys:
        return []
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for each in outcomes:
        shared = tuple((key, value) for key, value in each.settings.items() if key != SEED)
        if each.word == "finished":
            groups.setdefault(shared, []).append(each)
    return [(dict(shared), found) for shared, found in groups.items() if len(found) > 1]


def following(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """What to type next, by label."""
    runs = f"{shown(sweep.folder)}/[0-9]*"
    begun = [each for each in outcomes if each.word != "not begun"]
    if not begun:
        return []
    found = [("status", f"foreframe status {runs}")]
    if any(each.step for each in begun):
        one_or_all = runs if len(begun) > 1 else f"{shown(sweep.folder)}/{begun[0].name}"
        found.append(("report", f"foreframe report {one_or_all}"))
    if sweep.elements[0].config.tracker.kind == "mlflow":
        found.append(("mlflow", f"foreframe ui {shown(sweep.folder)}/{begun[0].name}"))
    return found


def _number(value: float | None) -> str:
    return str(DASH) if value is None else f"{value:.4f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return str(DASH)
    mean = statistics.fmean(known)
    return f"{mean:.4f} ± {statistics.stdev(known):.4f}" if len(known) > 1 else f"{mean:.4f}"
