"""What `foreframe status` tells of a run's job, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.errors import DivergedError, ForeframeError
from launch.config import CONFIG_FILE, read_config
from launch.failure import FAILURE_FILE
from launch.lock import SUBMISSIONS_FOLDER
from launch.run_state import State
from launch.submitted import Submitted

ENDINGS = ("result.json", FAILURE_FILE)


@dataclass(frozen=True)
class Job:
    """The submission that counts, beside the state of its run. ended_s: when the run said how it ended."""

    run: Path
    state: State
    submission: Submitted
    ended_s: float | None

    @property
    def is_later(self) -> bool:
        """Whether it was submitted after the run ended, as far as that is known."""
        when_s = self.submission.when_s
        return self.ended_s is None or when_s is None or when_s > self.ended_s

    @property
    def is_shown(self) -> bool:
        found, state = self.submission, self.state
        if not found.is_handed_over:
            return False
        if found.end is not None:
            return not state.is_alive and self.is_later and found.end.exit_code != 0
        is_over = state.word == "finished" or state.exit_code == DivergedError.exit_code
        return self.is_later or not is_over

    @property
    def waits(self) -> bool:
        """It may go on with the run by itself: what is typed meanwhile would stand in its way."""
        return self.is_shown and self.submission.is_open and not self.state.is_alive

    @property
    def config(self) -> Path:
        return self.run / SUBMISSIONS_FOLDER / self.submission.number / CONFIG_FILE

    @property
    def again(self) -> str:
        """Submits the same again; where it ran is a file that is not known."""
        place = self.submission.place
        settings = "" if place == "local" else " --with …"
        return f"foreframe submit {quoted(self.config)} --on {place}{settings}"

    @property
    def looks(self) -> str | None:
        """How it is, from outside; its log where that is what this very command shows."""
        told: Mapping[str, str] = self.submission.told
        watch = told.get("watch", "")
        return told.get("log") if not watch or watch.startswith("foreframe status") else watch


def job_of(run: Path, state: State, submission: Submitted | None) -> Job | None:
    if submission is None:
        return None
    found = []
    for name in ENDINGS:
        try:
            found.append((run / name).stat().st_mtime)
        except OSError:
            continue
    return Job(run, state, submission, max(found, default=None))


def after_run(run: Path, state: State, job: Job | None, *, has_begun: bool, is_probed: bool) -> str | None:
    """What to type next; None of a run that needs nothing."""
    word = state.word
    if job is not None and job.waits:
        return job.looks
    if word == "finished":
        return f"foreframe {'report' if is_probed else 'probe'} {quoted(run)}"
    if state.exit_code == DivergedError.exit_code:
        return f"foreframe report {quoted(run)}"  # it would go on from weights that are no good
    if word in ("stopped", "preempted", "failed"):
        return f"foreframe train {quoted(run)}" if has_begun or job is None else job.again
    if word == "hung" and state.pid is not None:
        if job is not None and job.submission.is_open and (stop := job.submission.told.get("stop")):
            return stop
        return f"kill -TERM {state.pid}; foreframe train {quoted(run)}"
    return None


def after_sharding(job: Job) -> str | None:
    """The same of a data set's submission."""
    if job.state.word == "finished":
        out = _out_of(job)
        return None if out is None else f"foreframe verify {quoted(out)}"
    return job.looks if job.submission.is_open else job.again


def _out_of(job: Job) -> str | Path | None:
    """Where the data set lies: of a relative `out`, seen from where its runs folder is."""
    try:
        out = read_config(job.config, [], DataConfig).out
    except ForeframeError:
        return None
    return out if "://" in out else job.run.parent.parent / out


def quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
