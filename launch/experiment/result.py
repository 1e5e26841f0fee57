"""What an experiment came to: its result as a file, its table and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from data_pipeline.storage import write_whole
from launch.environment import described_cpu
from launch.experiment.config import ExperimentConfig
from launch.experiment.drawn_table import drawn_table
from launch.experiment.evaluate import asked_of
from launch.experiment.kept import config_of
from launch.experiment.maps import draw_all_maps, maps_of_arms
from launch.experiment.measured import (
    TRAINING_TFLOPS,
    Evaluated,
    commits_of,
    measured,
    seconds_of,
    training_tflops,
)
from launch.experiment.plots import draw_plots, plots_of
from launch.experiment.runs import Cell, Run, cells_of, settings_below
from launch.experiment.summary import all_tables, grouped, in_groups, rows_of, spreads_in, spreads_of
from launch.provenance import git, versions
from launch.sweep.elements import shown
from pretrain.tracking.jsonl import read_metrics

RESULT_FILE, TABLE_FILE = "result.json", "table.md"
Say = Callable[[str], None]


def conclude(
    experiment: ExperimentConfig,
    folder: Path,
    made: Mapping[str, Sequence[Run]],
    evaluated: Mapping[Cell, Evaluated],
    changes: Sequence[str],
    say: Say,
) -> list[Path]:
    """Write the result, its table and figures, and print the table. made: the finished runs, by stage.

    Where runs were to be asked something, those that could not be are left out. Returns what was written. In
    the result, commit: of the code that put it together; commits: of the code that made the runs.
    """
    last = list(made)[-1]
    left_out = {run.cell for run in made[last]} - set(evaluated) if experiment.evaluate else set()
    metrics = {
        stage: {
            run.cell: read_metrics(run.element.run)
            for run in runs
            if stage != last or run.cell not in left_out
        }
        for stage, runs in made.items()
    }
    numbers = {cell: each.numbers for cell, each in evaluated.items()}
    values, untrained = {}, {}
    for run in made[last]:
        if run.cell in metrics[last]:
            counted = {TRAINING_TFLOPS: training_tflops(run.element.config)}
            asked = counted | numbers.get(run.cell, {})
            own, before = measured(experiment.measures, metrics[last][run.cell], asked)
            values[run.cell], untrained[run.cell] = own, before
    names = [each.name for each in experiment.measures]
    if not metrics[last]:
        why = "could be asked" if left_out else "has finished"
        say(f"none of the runs of {last} {why}: there is no table")
        return []
    spreads = spreads_of(values, untrained, list(experiment.last.arms), names, experiment.against)
    result = {
        "benchmark": f"experiment_{experiment.name}",
        "date": date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "commits": commits_of(
            run.element.run for stage, runs in made.items() for run in runs if run.cell in metrics[stage]
        ),
        "device": described_cpu(),
        "versions": versions(),
        "config": experiment.model_dump(mode="json") | {"changes": list(changes)},
        "asked": asked_of(experiment),
        "laid_over": settings_below(experiment),
        "seconds": round(sum(seconds_of(lines) for each in metrics.values() for lines in each.values()), 1),
        "rows": rows_of(spreads, experiment.axis, experiment.against),
        "missing": missing_cells(experiment, [*metrics[last], *left_out]),
        "not_asked": _told(experiment, [cell for cell, _ in cells_of(experiment, last) if cell in left_out]),
        "unmeasured": unmeasured_cells(experiment, values, metrics[last]),
        "plots": plots_of(experiment, metrics, spreads, numbers),
        "maps": maps_of_arms({cell: each.maps for cell, each in evaluated.items()}, experiment.axis),
    }
    written = publish(result, folder, say)
    say(f"report foreframe report {shown(folder / last)}/[0-9]*")
    if made[last][0].element.config.tracker.kind == "mlflow":
        say(f"mlflow foreframe ui {shown(made[last][0].element.run)}")
    return written


def publish(result: Mapping[str, Any], folder: Path, say: Say) -> list[Path]:
    """Write a result, its table and figures into a folder, and print the table; what was written."""
    experiment = config_of(result)
    spreads, plots = spreads_in(result["rows"]), result["plots"]
    groups = grouped(each.model_dump() for each in experiment.measures)
    write_whole(folder / RESULT_FILE, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    below = notes_of(experiment.model_dump(mode="json"))
    if result["missing"]:
        below.append(f"Not finished, and not in the table: {'; '.join(result['missing'])}.")
    if not_asked := result.get("not_asked"):
        below.append(f"Could not be asked, and not in the table: {'; '.join(not_asked)}.")
    for name, cells in result["unmeasured"].items():
        below.append(f"Without a finite {name} at the end: {'; '.join(cells)}.")
    parts = [experiment.question, all_tables(spreads, groups, experiment.axis), *below]
    write_whole(folder / TABLE_FILE, ("\n\n".join(parts) + "\n").encode())
    drawn = [path for path, _ in draw_plots(plots, experiment.name, folder)]
    drawn += draw_all_maps(result["maps"], experiment.name, folder)
    say(f"\n{experiment.question}")
    for group, of_group, digits in in_groups(spreads, groups):
        say(f"\n{group}:\n" if group else "")
        say(drawn_table(of_group, digits, experiment.axis))
    say(f"\nMean ± standard deviation over seeds. {' '.join(below)}".rstrip())
    for each in experiment.measures:
        if all(spread.measure != each.name for spread in spreads):
            say(f"\n{each.name!r} is in no row: no run told {each.key}")
    for told in empty_panels(plots):
        say(f"\n{told}")
    if experiment.against is not None and experiment.seeds > 1:
        say(f"\n* differs from {experiment.against}, seed by seed, by more than its 95 % interval")
    written = [folder / RESULT_FILE, folder / TABLE_FILE, *drawn]
    for path in written:
        say(f"wrote  {shown(path)}")
    return written


def notes_of(config: Mapping[str, Any]) -> list[str]:
    """What a reader must know of an experiment's numbers. config: as its result keeps it."""
    if config["evaluate"] != "planning":
        return []
    return [f"Shares reached are of {config['episodes']} goals a run."]


def empty_panels(plots: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sets of axes that no run gave a curve for, in a sentence each."""
    return [
        f"{plot['title']!r} has no curve of {panel['unit']}: no run told such numbers"
        for plot in plots
        for panel in plot["panels"]
        if not panel["curves"]
    ]


def missing_cells(experiment: ExperimentConfig, finished: Container[Cell]) -> list[str]:
    """Runs of the last stage that a table of it leaves out, an arm at a level each."""
    every = (cell for cell, _ in cells_of(experiment, list(experiment.stages)[-1]))
    return _told(experiment, (cell for cell in every if cell not in finished))


def unmeasured_cells(
    experiment: ExperimentConfig,
    values: Mapping[Cell, Mapping[str, float]],
    metrics: Mapping[Cell, Sequence[Mapping[str, Any]]],
) -> dict[str, list[str]]:
    """By measure, the finished runs that logged it and have no finite number at the end: they diverged."""
    found = {}
    for measure in experiment.measures:
        cells = [
            cell
            for cell, own in values.items()
            if measure.name not in own and any(measure.key in line for line in metrics[cell])
        ]
        if cells:
            found[measure.name] = _told(experiment, cells)
    return found


def _told(experiment: ExperimentConfig, cells: Iterable[Cell]) -> list[str]:
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        at = "" if cell.level is None else f", {experiment.axis} {cell.level:g}"
        seeds.setdefault(f"{cell.arm}{at}", []).append(str(cell.seed))
    return [f"{arm}: seed {', '.join(each)}" for arm, each in seeds.items()]
