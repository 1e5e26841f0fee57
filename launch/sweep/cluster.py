"""A sweep handed to a cluster as one job of many elements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import UsageError
from launch.submit.base import Job, Place
from launch.submit.freeze import next_folder
from launch.submit.submission import Asked, submit
from launch.sweep.elements import Sweep, write_sweep
from launch.sweep.local import state_of

LIMITS = ("parallel", "array_parallel")  # what places call the number of elements at a time
DONE = ("finished", "running", "hung", "silent")


def hand_over(
    sweep: Sweep,
    place: Place,
    parallel: int | None,
    say: Callable[[str], None],
    *,
    is_dry: bool,
    checks_data: bool,
) -> None:
    """Submit those elements that have not finished and do not run. parallel: at a time, if the place can.

    Raises: UsageError, ConfigError as `submit` does, and where the place knows no sweeps.
    """
    place = _with_parallel(place, parallel)
    words = {
        each.name: status.state.word if (status := state_of(each)) else "not begun" for each in sweep.elements
    }
    left = [each for each in sweep.elements if words[each.name] not in DONE]
    for name, word in words.items():
        if word in DONE:
            say(f"{name}  {word}, left as it is")
    if not left:
        say("every element has finished or runs: nothing was submitted")
        return
    trackers = [each.config.tracker for each in left]
    if any(each.kind == "mlflow" and each.uri is None for each in trackers):
        say(
            "note   tracker.uri is null: each run keeps its own pages; name a server to see them as one group"
        )
    configs = tuple(each.config for each in left)
    whole = configs[0].model_copy(update={"name": sweep.name, "out": str(sweep.folder.parent)})
    job = Job(
        kind="train",
        name=sweep.name,
        config=configs[0],
        folder=next_folder(whole),
        workdir=Path.cwd(),
        elements=len(configs),
        configs=configs,
    )
    if not is_dry:
        write_sweep(sweep)
    submit(job, place, Asked(is_dry=is_dry, checks_data=checks_data), say, configs)
    for number, each in enumerate(left):
        say(f"{number:>6} {each.name}")


def _with_parallel(place: Place, parallel: int | None) -> Place:
    """The place with its own setting for it. Raises: UsageError where it has none."""
    if parallel is None:
        return place
    key = next((key for key in LIMITS if key in type(place).model_fields), None)
    if key is None:
        raise UsageError(f"--parallel: a place of kind {place.kind} has no such setting; leave it out")
    return type(place).model_validate({**place.model_dump(), key: parallel})
