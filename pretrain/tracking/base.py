"""What a tracker is: the one place a run's numbers, files and pictures are handed to.

`metrics.jsonl` in the run's folder is always written; a server gets the same points beside it and may
be away for a while without the run noticing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pretrain.config import TrackerConfig

Value = float | int | str
Status = Literal["done", "stopped", "failed"]
Say = Callable[[str], None]

# Text that stands before the last @ of an address, and values of query keys that name a secret.
_USERINFO = re.compile(r"(?<=://)[^\s/'\"]+@")
_SECRET_QUERY = re.compile(r"(?i)([?&;][^=&\s]*(?:password|passwd|pwd|secret|token|key)[^=&\s]*=)[^&\s'\"]+")


@dataclass(frozen=True)
class DatasetFacts:
    """A data set that a run reads. num_clips: of the split that it reads."""

    name: str
    address: str
    fingerprint: str
    num_clips: int
    weight: float = 1.0


@dataclass(frozen=True)
class RunFacts:
    """What a tracker learns of a run at its start.

    config: the resolved config as plain values. tags: what may change on resume (commit, host, world size).
    """

    name: str
    config: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    datasets: tuple[DatasetFacts, ...] = ()


class Tracker(Protocol):
    """Takes what a run has to say. No method waits for a server, save start, flush and close."""

    def start(self, facts: RunFacts, resumed_at: int = 0) -> None:
        """Open the run; points after step `resumed_at` will come again.

        Raises: UsageError when a server is named, does not answer, and has nothing of this run yet.
        """

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        """The numbers of one step, in one call a step; text is kept in metrics.jsonl only."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """A finished file that will not change; `folder` is where it lies among the run's files."""

    def log_picture(self, path: Path, step: int) -> None:
        """A picture of a step; the same file name at several steps is one picture that changes."""

    def roll_back(self, to_step: int, note: str) -> None:
        """The run goes on from `to_step`; what it logged of later steps is kept apart, and comes again."""

    def flush(self) -> None:
        """Bring everything so far to where it survives the process."""

    def close(self, status: Status) -> None:
        """Flush, and say how the run ended."""


class Several:
    """Trackers called one after the other; none at all is a silent tracker."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def start(self, facts: RunFacts, resumed_at: int = 0) -> None:
        for tracker in self.trackers:
            tracker.start(facts, resumed_at)

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        for tracker in self.trackers:
            tracker.log_metrics(step, values)

    def log_file(self, path: Path, folder: str = "") -> None:
        for tracker in self.trackers:
            tracker.log_file(path, folder)

    def log_picture(self, path: Path, step: int) -> None:
        for tracker in self.trackers:
            tracker.log_picture(path, step)

    def roll_back(self, to_step: int, note: str) -> None:
        for tracker in self.trackers:
            tracker.roll_back(to_step, note)

    def flush(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def close(self, status: Status) -> None:
        for tracker in self.trackers:
            tracker.close(status)


def make_tracker(config: TrackerConfig, run: Path, *, say: Say | None = None) -> Tracker:
    """The tracker of a run's folder; MLflow is imported only when the config names it.

    say: takes a sentence for the user, when a server goes away or comes back.
    """
    from pretrain.tracking.jsonl import JsonlTracker

    lines = JsonlTracker(run)
    if config.kind == "jsonl":
        return Several([lines])
    from pretrain.tracking.mlflow import MlflowTracker

    tell = say or logging.getLogger("foreframe").warning
    return Several([lines, MlflowTracker(run, config.experiment, config.uri, tell)])


def add_results(
    config: TrackerConfig,
    run: Path,
    *,
    step: int,
    scores: dict[str, Value],
    pictures: Sequence[Path] = (),
    files: Sequence[Path] = (),
    say: Say | None = None,
) -> None:
    """Add what was found out after a run has ended (probe, pictures, report) to its tracker.

    scores: values by key (`probe/trained/position`), at `step`. metrics.jsonl stays as it is.
    Raises: UsageError when a server is named and does not answer.
    """
    if config.kind == "jsonl":
        return
    from pretrain.tracking.mlflow import MlflowTracker

    tracker = MlflowTracker(run, config.experiment, config.uri, say or logging.getLogger("foreframe").warning)
    status = tracker.reopen()
    if status is None:
        return
    tracker.log_metrics(step, scores)
    for path in pictures:
        tracker.log_picture(path, step)
    for path in files:
        tracker.log_file(path)
    tracker.close(status)


def run_title(run: Path, name: str) -> str:
    """A run's name where several are listed; before a bare `run` the folder it lies in.

    >>> run_title(Path("/home/ann/demo/run"), "run")
    'demo/run'
    """
    return f"{run.absolute().parent.name}/{name}" if name == "run" else name


def without_credentials(text: str) -> str:
    """`text` with user names, passwords and tokens of the addresses in it replaced by ***.

    >>> without_credentials("http://ann:pw@host:5000")
    'http://***@host:5000'
    """
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("***@", text))


def flatten(config: dict[str, Any]) -> dict[str, str]:
    """Dotted keys and printable values without credentials; lists of sections get their position as key."""
    flat: dict[str, str] = {}

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else str(name), inner)
        elif isinstance(value, (list, tuple)) and any(isinstance(inner, dict) for inner in value):
            for position, inner in enumerate(value):
                walk(f"{key}.{position}", inner)
        else:
            flat[key] = without_credentials("null" if value is None else str(value))

    walk("", config)
    return flat
