"""What a tracker is: the one place a run's numbers, files and pictures are handed to.

`metrics.jsonl` in the run's folder is always written; a server gets the same points beside it and may
be away for a while without the run noticing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pretrain.config import TrackerConfig

if TYPE_CHECKING:
    from pretrain.tracking.mlflow import MlflowTracker

FLUSH_S = 30.0
Value = float | int | str
Status = Literal["done", "stopped", "failed"]
Say = Callable[[str], None]

# Text that stands before the last @ of an address, and values of query keys that name a secret.
_USERINFO = re.compile(r"(?<=://)[^\s/'\"]+@")
_SECRET_QUERY = re.compile(r"(?i)([?&;][^=&\s]*(?:password|passwd|pwd|secret|token|key)[^=&\s]*=)[^&\s'\"]+")

# A value written down beside a name that says what it is; keys of well-known forms, wherever they stand.
_NAMED_SECRET = re.compile(
    r"(?i)\b([a-z0-9_.-]*(?:password|passwd|secret|secret_?access_?key|api_?key|access_?token|auth_?token)"
    r"['\"]?\s*[:=]\s*)"
    r"(?:(['\"])(?!\*\*\*)[^'\"\n]{6,}\2|(?!\*\*\*|null\b|None\b|true\b|false\b)[^\s'\"(){}\[\],]{6,}+(?![\[(]))"
)
_KEY_FORMS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\b(?:hf|gh[oprsu]|github_pat|glpat|xox[bap]|sk)[_-][A-Za-z0-9_-]{16,}"
    r"|\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}"  # a JSON Web Token
)
# What follows the word in a header; a digit, or its length, tells it from a word of a sentence.
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=[\w.~+/=-]*\d|[\w.~+/=-]{20})[\w.~+/=-]{6,}")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
)


@dataclass(frozen=True)
class DatasetFacts:
    """A data set that a run reads. num_clips: of the split that it reads. context: training or probe."""

    name: str
    address: str
    fingerprint: str
    num_clips: int
    weight: float = 1.0
    context: str = "training"


@dataclass(frozen=True)
class RunFacts:
    """What a tracker learns of a run at its start.

    params: the settings by which runs are told apart; they never change. tags: what may change on resume
    (commit, host, world size). description: markdown. experiment: what the run is listed under. group: the
    runs that it is shown together with, or None. rollbacks: all before this start, (at step, to step, why).
    """

    name: str
    experiment: str = "pretrain"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    datasets: tuple[DatasetFacts, ...] = ()
    group: str | None = None
    rollbacks: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something that was found out about a run and stands below it as a run of its own, such as a probing."""

    name: str
    params: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    datasets: tuple[DatasetFacts, ...] = ()
    description: str = ""


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
        """What came after `to_step` no longer counts; training goes on from there. note: why, in words."""

    def flush(self, longest_s: float = FLUSH_S) -> None:
        """Bring everything so far to where it survives the process; a server is waited for so long."""

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

    def flush(self, longest_s: float = FLUSH_S) -> None:
        for tracker in self.trackers:
            tracker.flush(longest_s)

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
    return Several([lines, MlflowTracker(run, config.uri, tell)])


def add_results(
    config: TrackerConfig,
    run: Path,
    *,
    step: int,
    scores: dict[str, Value],
    pictures: Sequence[Path] = (),
    files: Sequence[Path] = (),
    finding: Finding | None = None,
    say: Say | None = None,
) -> None:
    """Add what was found out after a run has ended (probe, pictures, report) to its tracker.

    scores: values by key (`probe/trained/position`), at `step`. finding: shown as a run below this one, with
    the files. metrics.jsonl stays as it is.
    Raises: UsageError when a server is named and does not answer.
    """
    with _reopened(config, run, say) as tracker:
        if tracker is None:
            return
        tracker.log_metrics(step, scores)
        for path in pictures:
            tracker.log_picture(path, step)
        if finding is not None:
            tracker.log_finding(finding, step, files)
        else:
            for path in files:
                tracker.log_file(path)


@contextmanager
def _reopened(config: TrackerConfig, run: Path, say: Say | None) -> Iterator[MlflowTracker | None]:
    """The MLflow run of an ended run, to be added to; it ends as it had. None where there is none."""
    if config.kind == "jsonl":
        yield None
        return
    from pretrain.tracking.mlflow import MlflowTracker

    tracker = MlflowTracker(run, config.uri, say or logging.getLogger("foreframe").warning)
    status = tracker.reopen()
    if status is None:
        yield None
        return
    yield tracker
    tracker.close(status)


def add_to_group(config: TrackerConfig, run: Path, files: Sequence[Path], *, say: Say | None = None) -> None:
    """Add files to the MLflow run of a group that a run lies below; none where it lies below none.

    Raises: UsageError when the server does not answer.
    """
    with _reopened(config, run, say) as tracker:
        if tracker is not None:
            for path in files:
                tracker.log_above(path)


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


def without_secrets(text: str) -> str:
    """`text` of a file (a config, a patch) with what looks like a secret replaced by ***.

    >>> without_secrets("aws_secret_access_key = abcdef0123456789")
    'aws_secret_access_key = ***'
    """
    text = _PRIVATE_KEY.sub("***", without_credentials(text))
    text = _KEY_FORMS.sub("***", _NAMED_SECRET.sub(_starred, text))
    return _BEARER.sub(r"\1***", text)


def _starred(found: re.Match[str]) -> str:
    name, quote = found[1], found[2] or ""
    return f"{name}{quote}***{quote}"


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
