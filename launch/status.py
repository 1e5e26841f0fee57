"""`foreframe status`: how runs are, from their folders alone; nothing is written there, no lock is taken."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from data_pipeline.errors import ForeframeError, UsageError, why
from data_pipeline.storage import open_regular
from launch.attempts import duration
from launch.config import CONFIG_FILE, read_config
from launch.console import LINE_EVERY_S, make_table
from launch.figures import Figures
from launch.live import LinesLive, takes_panel
from launch.lock import LOCK_FILE, SUBMISSIONS_FOLDER
from launch.next_step import Job, after_run, after_sharding, job_of
from launch.panel import DASH, Cell, View, cell_lines, panel_lines, verdict_of
from launch.paths import is_folder
from launch.run_files import METRICS_FILE, Folder, Reader, finite, printable
from launch.run_state import State, sharding_state, state_of
from launch.submitted import Submitted, last_submission
from launch.unread import is_unread
from pretrain.config import RunConfig

EVERY_S = 2.0
SWEEP_FILE = "sweep.json"  # in the folder of a sweep, as every stage of an experiment is
WORDS = {"running": "green", "finished": "bold green", "hung": "bold red", "failed": "bold red"}
MARKS = (
    CONFIG_FILE,
    METRICS_FILE,
    "checkpoints",
    "result.json",
    LOCK_FILE,
    SUBMISSIONS_FOLDER,
)  # any makes a folder a run's


@dataclass(frozen=True)
class Status:
    """How a run is. steps, best_by: as it is configured; None where that cannot be read.

    verdict: the last one that was logged, with its reason, and the step of it. job: the submission that
    counts, where there is any. has_begun: the folder holds a run.
    """

    run: Path
    state: State
    figures: Figures
    steps: int | None
    verdict: tuple[str, str] | None
    verdict_step: int | None
    best_by: str | None
    folder: Folder
    now_s: float
    job: Job | None = None
    has_begun: bool = True
    run_name: str | None = None

    @property
    def called(self) -> str:
        """Its folder; of one that was given a name, as those of an experiment are, that and its group."""
        return str(self.run) if self.run_name is None else f"{self.run.parent.name}: {self.run_name}"

    @property
    def following(self) -> str | None:
        """What to type next; None of a run that needs nothing."""
        if self.job is not None and self.is_sharding:
            return after_sharding(self.job)
        probes = self.folder.probes
        is_probed = bool(probes) and probes[-1].step >= self.figures.step
        return after_run(self.run, self.state, self.job, has_begun=self.has_begun, is_probed=is_probed)

    @property
    def submission(self) -> Submitted | None:
        return None if self.job is None else self.job.submission

    @property
    def is_sharding(self) -> bool:
        """No run, but what a data set's submissions have left."""
        return not self.has_begun and self.submission is not None and self.submission.kind == "shard"


def read_status(run: Path, now_s: float | None = None) -> Status:
    """Raises: UsageError when there is no run."""
    check_run(run)
    reader, now_s = Reader(run), now_s or time.time()
    submission = last_submission(reader)
    has_begun = (run / CONFIG_FILE).exists()
    if submission is not None and submission.kind == "shard" and not has_begun:
        return _sharding(run, submission, tuple(dict.fromkeys(reader.troubles)), now_s)
    config = _config(reader, submission)
    lines = reader.metrics()
    folder = reader.folder()
    hang_s = None if config is None else config.train.hang_s
    state = state_of(reader, lines, folder.attempts, hang_s, submission=submission, now_s=now_s)
    steps = None if config is None else config.train.steps
    limit_s = None if config is None else config.train.time_limit_s
    figures = Figures.of(lines, steps, limit_s)
    if not state.is_alive:
        figures = replace(figures, left_s=None)
    told = [*folder.responses, *lines]  # of a long time without a look, health.jsonl has the last change
    judged = next((line for line in reversed(told) if verdict_of(line) is not None), None)
    return Status(
        run=run,
        state=state,
        figures=figures,
        steps=steps,
        verdict=None if judged is None else verdict_of(judged),
        verdict_step=None if judged is None else int(judged["step"]),
        best_by=None if config is None else config.train.keep_best,
        folder=replace(folder, troubles=tuple(dict.fromkeys(reader.troubles))),
        now_s=now_s,
        job=job_of(run, state, submission),
        has_begun=has_begun,
        run_name=None if config is None else config.tracker.run_name,
    )


def _sharding(run: Path, submission: Submitted, troubles: tuple[str, ...], now_s: float) -> Status:
    state = sharding_state(submission)
    return Status(
        run=run,
        state=state,
        figures=Figures(),
        steps=None,
        verdict=None,
        verdict_step=None,
        best_by=None,
        folder=Folder(troubles=troubles),
        now_s=now_s,
        job=job_of(run, state, submission),
        has_begun=False,
    )


def check_run(run: Path) -> None:
    """Raises: UsageError when a folder is no run's, naming one below it that is."""
    if not is_folder(run):
        raise UsageError(f"{run} does not exist: name a run's folder, such as runs/demo/run")
    try:
        if any((run / mark).exists() for mark in MARKS):
            return
        below = sorted(path.parent for path in run.glob(f"*/{CONFIG_FILE}"))
    except OSError as error:
        raise UsageError(f"{run} cannot be read: {error.strerror}") from error
    hint = f"; did you mean {below[0]}?" if below else "; `foreframe train` makes one"
    raise UsageError(f"{run} is no run's folder: it has no {CONFIG_FILE}{hint}")


@lru_cache(maxsize=64)  # it is read again and again with --watch, and takes longer than all the rest
def _read_config(path: Path, _: int) -> RunConfig:
    return read_config(path, [], RunConfig)


def _config(reader: Reader, submission: Submitted | None) -> RunConfig | None:
    """The run's; before it has begun, the one that was submitted."""
    path = reader.run / CONFIG_FILE
    if submission is not None and not path.exists():
        path = reader.run / SUBMISSIONS_FOLDER / submission.number / CONFIG_FILE
    try:
        open_regular(path).close()
        return _read_config(path, path.stat().st_mtime_ns)
    except ForeframeError as error:
        reader.troubles.append(f"{CONFIG_FILE}: {str(error).splitlines()[0]}")
    except FileNotFoundError:
        reader.troubles.append(f"{CONFIG_FILE}: it is not there")
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        reason = why(error) if isinstance(error, OSError) else error
        reader.troubles.append(f"{CONFIG_FILE}: {reason}")
    return None


def plain(status: Status) -> dict[str, Any]:
    """For JSON: the same keys for every run, null where nothing is known."""
    folder, state = status.folder, status.state
    newest = folder.saved[0] if folder.saved else None
    best = folder.best(status.best_by)
    probe = folder.probes[-1] if folder.probes else None
    last = folder.attempts[-1] if folder.attempts else None
    return {
        "run": str(status.run),
        "state": state.word,
        "known_by": state.known_by,
        "reason": state.reason or None,
        "exit_code": state.exit_code,
        "seen_s": state.seen_s,
        "pid": state.pid,
        "host": state.host,
        "steps": status.steps,
        **asdict(status.figures),
        "verdict": None if status.verdict is None else status.verdict[0],
        "verdict_reason": (status.verdict[1] or None) if status.verdict is not None else None,
        "verdict_step": status.verdict_step,
        "checkpoints": {
            "count": len(folder.saved),
            "newest": None
            if newest is None
            else {"step": newest.step, "age_s": max(0.0, status.now_s - newest.at_s)},
            "best": None
            if best is None
            else {"step": best[0].step, "score": status.best_by, "value": best[1]},
        },
        "probe": None
        if probe is None
        else {"step": probe.step, "scores": dict(probe.scores), "untrained": dict(probe.untrained)},
        "restarts": {
            "attempts": len(folder.attempts),
            "last": None if last is None else {"ended": last.sentence or last.next, "next": last.next},
        },
        "responses": [in_json(found) for found in folder.responses],
        "mlflow": folder.page,
        "submission": None if status.submission is None else asdict(status.submission),
        "next": status.following,
        "troubles": list(folder.troubles),
    }


def in_json(found: Any) -> Any:
    """The same for JSON, which has no infinity."""
    if isinstance(found, Mapping):
        return {str(key): in_json(value) for key, value in found.items()}
    if isinstance(found, list):
        return [in_json(value) for value in found]
    return finite(found) if isinstance(found, float) else found


def block(status: Status, width: int) -> list[Text]:
    """A run as some lines: how it is and how that is known, its figures, what to type next."""
    state, folder = status.state, status.folder
    word = Text(state.word, WORDS.get(state.word, "bold yellow"))
    above = [Cell("state", word), Cell("known", Text(_known(state), "dim"), is_wide=True)]
    if state.reason:
        above.insert(1, Cell("why", Text(state.reason), is_wide=True))
    below = []
    if status.job is not None and status.job.is_shown:
        submission = status.job.submission
        below.append(Cell("job", Text(submission.says), is_wide=True))
        if log := submission.told.get("log"):
            below.append(Cell("log", Text(log), is_wide=True))
    below += [Cell("damaged", Text(trouble, "yellow"), is_wide=True) for trouble in folder.troubles]
    if status.following is not None:
        below.append(Cell("next", Text(status.following), is_wide=True))
    if status.is_sharding:
        return cell_lines([*above, *below], width)
    view = View(
        run=str(status.run),
        figures=status.figures,
        steps=status.steps,
        verdict=status.verdict,
        folder=folder,
        now_s=status.now_s,
        pace="starting" if state.is_alive and not status.figures.step else "",
        best=folder.best(status.best_by),
    )
    return panel_lines(view, width, above, below)


def _known(state: State) -> str:
    is_said = state.seen_s is None or "sign of life" in state.known_by
    return (
        state.known_by
        if is_said
        else f"{state.known_by}; last sign of life {duration(state.seen_s or 0)} ago"
    )


def table(statuses: Sequence[Status]) -> Table:
    """A line a run."""
    rows = []
    for each in statuses:
        figures = each.figures
        of = (
            DASH
            if each.is_sharding
            else f"{figures.step:,}"
            if each.steps is None
            else f"{figures.step:,}/{each.steps:,}"
        )
        rows.append(
            [
                Text(printable(each.called)),
                each.state.word,
                of,
                DASH if figures.loss is None else f"{figures.loss:.4f}",
                DASH if each.verdict is None else Text(printable(each.verdict[0])),
                DASH if figures.clips_per_s is None else f"{figures.clips_per_s:.1f}",
                DASH if figures.left_s is None else duration(figures.left_s),
                DASH if each.state.seen_s is None else f"{duration(each.state.seen_s)} ago",
            ]
        )
    heads = ["run", "state", "step", "loss", "health", "clips/s", "left", "last sign"]
    return make_table("", heads, rows)


def runs_in(folder: Path) -> list[Path]:
    """The runs of a sweep's or an experiment's folder that have begun; of any other the folder itself."""
    try:
        sweeps = sorted(path.parent for path in (*folder.glob(SWEEP_FILE), *folder.glob(f"*/{SWEEP_FILE}")))
        runs = [path.parent for sweep in sweeps for path in sorted(sweep.glob(f"*/{CONFIG_FILE}"))]
    except OSError:  # said where it is read
        return [folder]
    return runs or [folder]


def read_all(folders: Sequence[Path]) -> tuple[list[Status], list[str]]:
    """Of several folders, as `runs/*` gives them, those of runs; and a sentence of each other.

    Of a sweep or an experiment its runs.

    Raises: UsageError when none is a run's.
    """
    found, others = [], []
    runs = [run for folder in folders for run in runs_in(folder)]
    for run in runs:
        try:
            found.append(read_status(run))
        except UsageError as error:
            if len(runs) == 1:
                raise
            others.append(str(error))
    if not found:
        raise UsageError("\n".join(others))
    return found, others


def show(runs: Sequence[Path], *, as_json: bool, watch: bool, console: Console) -> None:
    """Print how the runs are, once, or until Ctrl-C or nobody reads it any more.

    Raises: UsageError when none is a run.
    """

    def drawn(width: int) -> RenderableType:
        found, others = read_all(runs)
        if len(runs) == 1 and found[0].run == runs[0]:
            return Group(*block(found[0], width))
        return Group(table(found), *(Text(f"left out: {other}", "dim") for other in others))

    def say() -> None:
        if as_json:
            for status in read_all(runs)[0]:
                print(json.dumps(plain(status)), flush=True)
        else:
            console.print(drawn(console.width))

    if not watch or as_json or not takes_panel(console):
        say()
        while watch and not is_unread():
            time.sleep(EVERY_S if as_json else LINE_EVERY_S)
            say()
        return
    with LinesLive(drawn, console, 1 / EVERY_S):
        while not is_unread():
            time.sleep(EVERY_S)
