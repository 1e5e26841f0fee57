"""What an experiment found, in MLflow beside the runs' own curves; a server that is away costs a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UsageError
from launch.experiment.measured import Evaluated
from launch.experiment.runs import Run
from pretrain.tracking.base import without_credentials

Say = Callable[[str], None]
NO_KEY = re.compile(r"[^\w ./-]+")  # what a key of MLflow may not have everywhere


def track_evaluation(run: Run, asked: str, found: Evaluated, say: Say) -> bool:
    """The numbers of a run that was asked, as points of its last step: `rollout/latent 1 true actions`.

    Returns whether nothing is left to be told.
    """
    from pretrain.tracking.base import add_results

    config = run.element.config
    if not _is_at_home(run):
        return False
    scores = {f"{asked}/{key_of(name, asked)}": value for name, value in found.numbers.items()}
    try:
        add_results(config.tracker, run.element.run, step=config.train.steps, scores={**scores}, say=say)
    except UsageError as error:
        say(f"{run.element.called}: what it was asked stands in its folder, and not in MLflow: {error}")
        return False
    return True


def _is_at_home(run: Run) -> bool:
    """Whether the run is tracked where it was begun: a store that was moved still names its old place."""
    from pretrain.tracking.mlflow.runs import read_record

    tracker = run.element.config.tracker
    if tracker.kind == "jsonl" or tracker.uri is None:
        return True
    record = read_record(run.element.run)
    return record is None or record.get("address") == without_credentials(tracker.uri)


def key_of(name: str, asked: str) -> str:
    """A number's name in an experiment as a key of MLflow, below what was asked.

    >>> key_of("planning reached, 0.4 away: model, mppi", "planning")
    'reached 0.4 away model mppi'
    """
    return " ".join(NO_KEY.sub(" ", name.removeprefix(f"{asked} ")).split())


def track_conclusion(made: Mapping[str, Sequence[Run]], files: Sequence[Path], say: Say) -> None:
    """The result, table and figures, as files of the run that those of the last stage lie below."""
    from pretrain.tracking.base import add_to_group

    runs = made[list(made)[-1]]
    if not runs or not files:
        return
    if not _is_at_home(runs[0]):
        say("the folder was moved, or another server is named: table and figures are not in MLflow")
        return
    try:
        add_to_group(runs[0].element.config.tracker, runs[0].element.run, files, say=say)
    except UsageError as error:
        say(f"table and figures are not in MLflow: {error}")
