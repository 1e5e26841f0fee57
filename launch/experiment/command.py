"""`foreframe experiment`: data, runs, what is measured of them, a table and figures; goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.errors import EXIT_OK, EXIT_PREEMPTED, CheckpointError, DataError, UsageError, why
from data_pipeline.storage import check_takes
from launch.config import read_config, shipped_config
from launch.console import Stages, make_console
from launch.experiment.config import ExperimentConfig
from launch.experiment.data import check_shard, folder_of, make_data, shards_of
from launch.experiment.evaluate import EVALUATIONS, check_evaluation, digest_of
from launch.experiment.joined import joined, why_no_part
from launch.experiment.kept import (
    changes_of,
    config_of,
    read_kept,
    that_count,
    what_decides,
    why_not_whole,
    why_other,
)
from launch.experiment.measured import Evaluated, is_tracked, keep_evaluation, kept_evaluation
from launch.experiment.progress import Watch, forecast
from launch.experiment.result import RESULT_FILE, TABLE_FILE, conclude, publish
from launch.experiment.rules import DATA_FOLDER, check_rules, refuse_changes
from launch.experiment.runs import Cell, Run, cells_of, stage_runs, told_of
from launch.experiment.tracked import track_conclusion, track_evaluation
from launch.lock import lock_run
from launch.processes import stops_at_once
from launch.sweep.elements import shown
from launch.sweep.local import EXIT_INTERRUPTED, check_elements, run_here, state_of
from pretrain.tracking.base import without_credentials

LOCK = ".lock-experiment"
OUT = Path("runs/experiments")
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # models of a laptop: the same numbers on every machine
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the command was given. changes: KEY=VALUE of all runs. seeds, first_seed: None is the file's."""

    experiment: str
    changes: tuple[str, ...] = ()
    seeds: int | None = None
    is_quick: bool = False
    parallel: int | None = None
    out: Path = OUT
    is_dry: bool = False
    first_seed: int | None = None


def shipped_experiments() -> list[str]:
    """Names of those in configs/experiments that are experiments, and not configs of one run."""
    folder = shipped_config("train/tiny-cpu.yaml").parents[1] / "experiments"
    return sorted(each.stem for each in folder.glob("*.yaml") if "\nquestion:" in each.read_text())


def read_experiment(asked: Asked) -> ExperimentConfig:
    """By name, or from a file. Raises: ConfigError; UsageError for a name that is none."""
    name, known = asked.experiment, shipped_experiments()
    if name in known:
        path = shipped_config(f"experiments/{name}.yaml")
    elif Path(name).suffix in (".yaml", ".yml"):
        path = Path(name)
    else:
        raise UsageError(f"{name!r} is no experiment: need one of {', '.join(known)}, or a YAML file")
    found = read_config(path, [], ExperimentConfig, [check_rules])
    if asked.is_quick:
        found = found.made_quick()
    given = {"seeds": asked.seeds, "first_seed": asked.first_seed}
    return found.model_copy(update={key: value for key, value in given.items() if value is not None})


def run_experiment(asked: Asked, say: Say) -> int:
    """Exit code: that of the runs, where some did not finish.

    Raises: ConfigError with the problems of all runs at once; UsageError; what data and evaluation raise.
    """
    experiment = read_experiment(asked)
    refuse_changes(experiment, asked.changes)
    folder = asked.out / folder_name(experiment)
    if not asked.is_dry:
        refuse_other_results(folder, experiment, asked.changes)
    shards = shards_of(folder / DATA_FOLDER, experiment.data)
    stages = planned(experiment, folder, shards, asked.changes)
    count = sum(len(runs) for runs in stages.values())
    parallel = asked.parallel or len(os.sched_getaffinity(0))
    say(f"{experiment.name}: {experiment.question}")
    say(f"{shown(folder)}: {count} runs, {min(parallel, count)} at a time, {seeds_told(experiment)}")
    if asked.is_dry:
        known = [asked.out / name / RESULT_FILE for name in (experiment.name, f"{experiment.name}-quick")]
        say(forecast(stages, known, min(parallel, count)))
        for name, runs in stages.items():
            for run in runs:
                say(f"  {name}: {told_of(run.cell, experiment.axis)}")
        say("dry run, nothing was started or written")
        return EXIT_OK
    try:
        for name in (RESULT_FILE, TABLE_FILE):  # found out before hours of work
            check_takes(folder, name)
    except OSError as error:
        what = error.filename or folder
        raise UsageError(f"{what} cannot be written, choose another --out: {why(error)}") from error
    with lock_run(folder, LOCK, "tried", "--out"), stops_at_once(says=True):
        for name, spec in experiment.data.items():
            make_data(folder / DATA_FOLDER, name, spec, Stages(make_console()))
        watch = Watch((run for runs in stages.values() for run in runs), say)
        code, made = _train(experiment, folder, shards, asked.changes, parallel, watch)
        if code in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            return code
        failed, whole, evaluated = _evaluate(experiment, made, shards, watch)
        files = conclude(experiment, folder, whole, evaluated, asked.changes, watch.say)
        track_conclusion(whole, files, watch.say)
    return code or failed


def join_results(asked: Asked, folders: Sequence[Path], say: Say) -> int:
    """Put together what commands with other seeds found, into OUT/NAME-joined; nothing is run.

    Raises: UsageError for a result that cannot be read, is not whole, or does not go with the others.
    """
    experiment = read_experiment(asked)
    try:
        results = [read_kept(folder / RESULT_FILE) for folder in folders]
        for folder, found in zip(folders, results, strict=True):
            is_alike = changes_of(found) == changes_of(results[0])
            other = "" if is_alike else f"{folders[0]} has other KEY=VALUE"
            told = f"the experiment {asked.experiment}"
            fault = other or why_other(found, experiment, told) or why_not_whole(found) or why_no_part(found)
            if fault:
                raise ValueError(f"{folder}: {fault}")
        whole = joined(results)
    except ValueError as error:
        raise UsageError(str(error)) from error
    folder = asked.out / f"{experiment.name}-joined"
    refuse_other_results(folder, config_of(whole), whole["config"]["changes"])
    try:
        check_takes(folder, RESULT_FILE)
        publish(whole, folder, say)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written, choose another --out: {why(error)}") from error
    return EXIT_OK


def folder_name(experiment: ExperimentConfig) -> str:
    """Other seeds than the first have a folder of their own, as names of runs begin with a number."""
    first = experiment.first_seed
    return f"{experiment.name}-from-seed-{first}" if first else experiment.name


def refuse_other_results(folder: Path, experiment: ExperimentConfig, changes: Sequence[str]) -> None:
    """Raises: UsageError where a result would be written over one of other settings, or of more seeds."""
    try:
        found = read_kept(folder / RESULT_FILE)
    except ValueError:  # none, or half of one
        return
    theirs, held = config_of(found), f"{shown(folder)} holds a result"
    now, then = what_decides(experiment), what_decides(theirs)
    choose = f"choose another --out, or remove {shown(folder / RESULT_FILE)}"
    if other := [key for key in now if key != "measures" and now[key] != then[key]]:
        raise UsageError(f"{held} of other {' and '.join(other)}: {choose}")
    if (before := changes_of(found)) != that_count(changes):
        told = f"with {without_credentials(' '.join(before))}" if before else "of the settings as they are"
        raise UsageError(f"{held} {told}: give the same, {choose}")
    if theirs.seeds > experiment.seeds:
        raise UsageError(f"{held} of {theirs.seeds} seeds: give --seeds {theirs.seeds} or more, {choose}")


def seeds_told(experiment: ExperimentConfig) -> str:
    """`5 seeds`, `seeds 2 to 4`."""
    first, last = experiment.first_seed, experiment.first_seed + experiment.seeds - 1
    if first == 0:
        return "1 seed" if experiment.seeds == 1 else f"{experiment.seeds} seeds"
    return f"seed {first}" if first == last else f"seeds {first} to {last}"


def planned(
    experiment: ExperimentConfig, folder: Path, shards: Mapping[str, Path], changes: Sequence[str]
) -> dict[str, list[Run]]:
    """The runs of every stage, each config checked, before anything is made."""
    found: dict[str, list[Run]] = {}
    for name, spec in experiment.data.items():
        check_shard(name, folder_of(folder / DATA_FOLDER, name, spec), spec)
    for name in experiment.stages:
        found[name] = stage_runs(experiment, name, folder, shards, found, changes)[1]
    check_evaluation(experiment, list(found.values())[-1])
    return found


def _train(
    experiment: ExperimentConfig,
    folder: Path,
    shards: Mapping[str, Path],
    changes: Sequence[str],
    parallel: int,
    watch: Watch,
) -> tuple[int, dict[str, list[Run]]]:
    """Stage after stage, each from what has finished of those before. The runs by stage.

    Exit code: of the first stage whose runs did not all finish.
    """
    made: dict[str, list[Run]] = {}
    whole: dict[str, list[Run]] = {}
    ended = EXIT_OK
    for name in experiment.stages:
        sweep, runs = stage_runs(experiment, name, folder, shards, whole, changes)
        count = len(list(cells_of(experiment, name)))
        if len(runs) < count:
            left_out = count - len(runs)
            watch.say(
                f"{left_out} of the {count} runs of {name} left out: what they start from did not finish"
            )
        check_elements(sweep)
        watch.say(f"{name}: {len(runs)} runs")
        code, named = run_here(sweep, nproc=1, parallel=parallel, env=ON_CPU, say=watch.say, look=watch.look)
        if code in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            return code, made
        pairs = zip(runs, named.elements, strict=True)
        made[name] = [Run(run.cell, element) for run, element in pairs]
        whole[name] = [each for each in made[name] if _is_finished(each)]
        if code != EXIT_OK:
            left = len(runs) - len(whole[name])
            watch.say(f"{left} of the {len(runs)} runs of {name} did not finish; the same command goes on")
        ended = ended or code
    return ended, made


def _is_finished(run: Run) -> bool:
    status = state_of(run.element)
    return status is not None and status.state.word == "finished"


def _evaluate(
    experiment: ExperimentConfig, made: Mapping[str, Sequence[Run]], shards: Mapping[str, Path], watch: Watch
) -> tuple[int, dict[str, list[Run]], dict[Cell, Evaluated]]:
    """What the last stage's finished runs are asked; what was found before is kept.

    Returns the exit code of the first that cannot be asked; the finished runs by stage; and what was found.
    """
    whole = {stage: [run for run in runs if _is_finished(run)] for stage, runs in made.items()}
    if experiment.evaluate is None:
        return EXIT_OK, whole, {}
    evaluation = EVALUATIONS[experiment.evaluate]
    digest = digest_of(experiment)
    found: dict[Cell, Evaluated] = {}
    failed = EXIT_OK
    last = list(made)[-1]
    for number, run in enumerate(whole[last], start=1):
        values = kept_evaluation(run.element.run, digest)
        if values is None:
            told = f"{experiment.evaluate} {number}/{len(whole[last])}  {run.element.called}"
            try:
                values = evaluation.ask(experiment, run, shards, partial(watch.asked, told))
            except (CheckpointError, DataError) as error:
                is_lost = isinstance(error, CheckpointError)
                advice = f"; remove {shown(run.element.run)}, and the same command trains it anew"
                watch.say(f"{told}  failed: {error}{advice if is_lost else ''}")
                failed = failed or error.exit_code
                continue
            keep_evaluation(run.element.run, digest, values)
            watch.say(told)
        if not is_tracked(run.element.run):
            is_there = track_evaluation(run, experiment.evaluate, values, watch.say)
            keep_evaluation(run.element.run, digest, values, is_tracked=is_there)
        found[run.cell] = values
    return failed, whole, found
