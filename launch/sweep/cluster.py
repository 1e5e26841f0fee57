"""A sweep handed to a cluster as one job of many elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from launch.lock import SUBMISSIONS_FOLDER
from launch.run_state import last_written_s
from launch.submit.base import ELEMENTS_FOLDER, Job, Place
from launch.submit.freeze import next_folder, read_record
from launch.submit.submission import Asked, submit
from launch.submitted import RECORD_FILE
from launch.sweep.elements import Element, Sweep, held, shown
from launch.sweep.local import state_of

LIMITS = ("parallel", "array_parallel")  # what places call the number of elements at a time
DONE = ("finished", "running", "hung")
HANDED_OVER = ("started", "submitted")


def hand_over(
    sweep: Sweep,
    place: Place,
    parallel: int | None,
    say: Callable[[str], None],
    *,
    is_dry: bool,
    checks_data: bool,
    submits_again: bool = False,
) -> None:
    """Submit those elements that have not finished and do not run. parallel: at a time, if the place can.

    submits_again: also those that wait in an earlier job, as far as is known.
    Raises: UsageError, ConfigError as `submit` does, where the place knows no sweeps, and when elements wait.
    """
    place = _with_parallel(place, parallel)
    with nullcontext(sweep) if is_dry else held(sweep) as named:
        left = _left_of(named, say)
        if not left:
            say("every element has finished or runs: nothing was submitted")
            return
        if not (is_dry or submits_again):
            _refuse_waiting(named, left)
        trackers = [each.config.tracker for each in left]
        if any(each.kind == "mlflow" and each.uri is None for each in trackers):
            say(
                "note   tracker.uri is null: each run keeps its own pages; "
                "name a server to see them as one group"
            )
        configs = tuple(each.config for each in left)
        whole = configs[0].model_copy(update={"name": named.name, "out": str(named.folder.parent)})
        job = Job(
            kind="train",
            name=named.name,
            config=configs[0],
            folder=next_folder(whole),
            workdir=Path.cwd(),
            elements=len(configs),
            configs=configs,
        )
        submit(job, place, Asked(is_dry=is_dry, checks_data=checks_data), say, configs)
    for number, each in enumerate(left):
        say(f"{number:>6} {each.name}")


def _left_of(sweep: Sweep, say: Callable[[str], None]) -> list[Element]:
    """What has neither finished nor runs. Raises: UsageError when a folder holds another experiment's run."""
    left = []
    for each in sweep.elements:
        status = state_of(each)
        word = "not begun" if status is None else status.state.word
        if word in DONE:
            say(f"{each.name}  {word}, left as it is")
            continue
        if status is not None and word == "silent":  # its own lock refuses a second process, should it live
            say(f"{each.name}  silent, {status.state.known_by}: submitted again")
        left.append(each)
    return left


def _refuse_waiting(sweep: Sweep, left: Sequence[Element]) -> None:
    """Raises: UsageError when an earlier job has elements that have not begun since, with what stops it."""
    for folder in sorted((sweep.folder / SUBMISSIONS_FOLDER).glob("[0-9]*"), reverse=True):
        if not (folder / RECORD_FILE).is_file():
            continue
        record = read_record(folder)
        if record.get("state") not in HANDED_OVER:
            continue
        since_s = _submitted_s(record)
        named = _names(folder)
        waiting = [each.name for each in left if each.name in named and not _has_begun(each.run, since_s)]
        if waiting:
            stop = record.get("told", {}).get("stop") or f"foreframe stop {shown(folder)}"
            job = f"{record.get('place', {}).get('kind', '?')} {record.get('id') or ''}".rstrip()
            more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            raise UsageError(
                f"{waiting[0]}{more} wait in {shown(folder)} ({job}): wait for that job, or stop it with "
                f"`{stop}` and give --again"
            )


def _submitted_s(record: Mapping[str, Any]) -> float:
    """Seconds since 1970; of a record that does not say it, such as a damaged one, infinitely late."""
    try:
        return datetime.fromisoformat(str(record.get("submitted"))).timestamp()
    except ValueError:
        return math.inf


def _names(folder: Path) -> set[str]:
    """Of the elements that a submission has frozen."""
    lines = [
        line
        for file in (folder / ELEMENTS_FOLDER).glob("*.yaml")
        for line in file.read_text("utf-8", errors="replace").splitlines()
        if line.startswith("name:")
    ]
    return {line.removeprefix("name:").strip().strip("'\"") for line in lines}


def _has_begun(run: Path, since_s: float) -> bool:
    written_s = last_written_s(run)
    return written_s is not None and written_s >= since_s


def _with_parallel(place: Place, parallel: int | None) -> Place:
    """The place with its own setting for it. Raises: UsageError where it has none."""
    if parallel is None:
        return place
    key = next((key for key in LIMITS if key in type(place).model_fields), None)
    if key is None:
        raise UsageError(f"--parallel: a place of kind {place.kind} has no such setting; leave it out")
    return type(place).model_validate({**place.model_dump(), key: parallel})
