"""`foreframe supervise`: starts `foreframe train`, and again from the last checkpoint where that may help.

What is tried again is what the world did to the run: a rank or the command killed, a peer lost, a hang, a
store that is away, a crash nobody has a name for. What the program or its config did stays as it is until
somebody mends it: a wrong setting, damaged data, a checkpoint that cannot be written, a run that diverged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.errors import EXIT_LOST_PEER, EXIT_OK, EXIT_PREEMPTED, ForeframeError
from data_pipeline.scratch import scratch_folder
from launch.attempts import Attempt, last_logged, newest_step, read_attempts, write_attempt
from launch.console import mend_terminal
from launch.ending import END_VARIABLE, End
from launch.lock import is_bare
from launch.processes import (
    POLL_S,
    SUPERVISOR_VARIABLE,
    Asked,
    adopt_orphans,
    descendants,
    end_descendants,
    send,
)

LONGEST_BACKOFF_S = 300.0
LEFTOVERS_S = 5.0  # what a command leaves behind ends by itself within moments
EXIT_CRASH, EXIT_INTERRUPTED = 1, 130


class GaveUpError(ForeframeError):
    """The run ended too often without getting further; its exit code is that of its last end."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Limits:
    """max_failures: in a row without a new checkpoint. backoff_s: before the first restart; it doubles with
    each failure, to 300 s. grace_s: that a stopped run may take for its last save."""

    max_failures: int = 3
    backoff_s: float = 5.0
    grace_s: float = 660.0

    def pause_s(self, failures: int) -> float:
        return min(LONGEST_BACKOFF_S, self.backoff_s * 2.0 ** max(0, failures - 1))


def end_of(status: int, record: End | None) -> End:
    """How a command ended: as it says itself where that fits its status (negative: a signal's number).

    Without a word of it, the exit code alone decides.
    """
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", often the kernel out of memory" if -status == signal.SIGKILL else ""
        return End(EXIT_LOST_PEER, "killed", f"foreframe train was killed by {name}{hint}", True)
    if record is not None and record.exit_code == status:
        return record
    may_pass = status in (EXIT_CRASH, EXIT_LOST_PEER, EXIT_PREEMPTED)
    sentence = "" if status == EXIT_OK else "see what it printed"
    return End(status, "done" if status == EXIT_OK else "unknown", sentence, may_pass)


@dataclass(frozen=True)
class Next:
    """What follows an attempt. pause_s: before the next one; None when this was the last."""

    pause_s: float | None
    exit_code: int
    told: str


def what_next(end: End, *, failures: int, limits: Limits, asked: str | None) -> Next:
    """failures: in a row without progress, this one counted. asked: the signal that stops all, or None."""
    if end.exit_code == EXIT_OK:
        return Next(None, EXIT_OK, "done")
    if asked is not None:
        is_named = end.exit_code not in (EXIT_CRASH, EXIT_LOST_PEER)
        return Next(None, end.exit_code if is_named else EXIT_PREEMPTED, f"stopped by {asked}")
    if end.kind == "stopped":
        return Next(None, end.exit_code, "stopped as configured")
    if not end.may_pass:
        return Next(None, end.exit_code, "not restarted: it would end the same way until it is mended")
    if failures >= limits.max_failures:
        return Next(None, end.exit_code, f"gave up after {failures} without progress")
    pause_s = limits.pause_s(failures)
    return Next(pause_s, end.exit_code, f"restarted after {pause_s:g} s")


class Stopped(Asked):
    """Signals that stop the supervisor; the second Ctrl-C asks for an end at once."""

    at_once = False

    def again(self) -> None:
        self.at_once = True

    @property
    def name(self) -> str | None:
        return None if self.number is None else self.number.name


class Supervisor:
    """Starts `command` until it is done, is stopped, or fails for good.

    command: `foreframe train` with its arguments. run: the run's folder, held by the caller.
    """

    def __init__(
        self, run: Path, command: Sequence[str], limits: Limits, say: Callable[[str], None], node: int = 0
    ) -> None:
        self._run, self._command, self._limits, self._say = run, list(command), limits, say
        self._node = node
        self.num_attempts = 0

    def supervise(self) -> int:
        """Until the end; the exit code.

        Raises: GaveUpError when there was no progress for too long.
        """
        adopt_orphans()
        before = read_attempts(self._run, self._node)
        number = before[-1].attempt + 1 if before else 1
        failures, best = 0, newest_step(self._run)
        with Stopped() as stopped, scratch_folder() as folder:
            while True:
                began, began_s = datetime.now(UTC), time.monotonic()
                from_step = newest_step(self._run)
                told = folder / f"end-{number}.json"
                status = self._run_once(told, stopped)
                end = end_of(status, End.read(told))
                to_step = newest_step(self._run)
                failures = 0 if to_step > best else failures + 1
                best = max(best, to_step)
                then = what_next(end, failures=failures, limits=self._limits, asked=stopped.name)
                self._write(
                    Attempt(
                        attempt=number,
                        node=self._node,
                        began=began.isoformat(timespec="seconds"),
                        seconds=round(time.monotonic() - began_s, 1),
                        from_step=from_step,
                        to_step=to_step,
                        reached=max(last_logged(self._run), to_step),
                        exit_code=status if status >= 0 else None,
                        signal=signal.Signals(-status).name if status < 0 else None,
                        kind=end.kind,
                        sentence=end.sentence,
                        next=then.told,
                    )
                )
                self.num_attempts += 1
                if stopped.at_once:
                    return EXIT_INTERRUPTED
                if then.pause_s is None:
                    self._tell_end(end, then, failures, best, stopped)
                    return then.exit_code
                if status < 0:
                    self._say(end.sentence)
                further = f"{to_step - from_step} steps further than this attempt began"
                limit = self._limits.max_failures
                row = f"failure {failures} of {limit} in a row without a new checkpoint"
                self._say(
                    f"starting again in {then.pause_s:g} s, from {_at(best)}: {row if failures else further}"
                )
                self._pause(then.pause_s, stopped)
                if stopped.number is not None:
                    self._say(f"{stopped.name} received between two attempts: not started again")
                    return EXIT_PREEMPTED
                number += 1

    def _tell_end(self, end: End, then: Next, failures: int, best: int, stopped: Stopped) -> None:
        if then.told.startswith("gave up"):
            raise GaveUpError(
                f"gave up: {failures} failures in a row without a new checkpoint since {_at(best)}; "
                f"the last: {end.sentence}",
                then.exit_code,
            )
        if stopped.number is not None and then.exit_code == EXIT_PREEMPTED != end.exit_code:
            self._say(f"stopped by {stopped.name} without a save: the same command goes on from {_at(best)}")
        elif then.told.startswith("not restarted"):
            self._say(then.told)

    def _run_once(self, told: Path, stopped: Stopped) -> int:
        """One attempt, with all that it started gone at the end; its status, negative for a signal."""
        environment = {**os.environ, END_VARIABLE: str(told), SUPERVISOR_VARIABLE: str(os.getpid())}
        child = subprocess.Popen(self._command, env=environment, start_new_session=True)
        deadline_s, forwarded = float("inf"), False
        while (status := _status_of(child.pid)) is None:
            if stopped.number is not None and not forwarded:
                forwarded, deadline_s = True, time.monotonic() + self._limits.grace_s
                is_hangup = stopped.number == signal.SIGHUP  # the terminal is gone: a stop like any other
                send(child.pid, signal.SIGTERM if is_hangup else stopped.number)
            if stopped.at_once or time.monotonic() > deadline_s:
                if not stopped.at_once:
                    self._say(f"not saved within {self._limits.grace_s:g} s: ended")
                deadline_s = float("inf")
                for facts in descendants(os.getpid()):
                    send(facts.pid, signal.SIGKILL)
                send(child.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        child.returncode = status  # else Popen would wait for it once more
        end_descendants(0.0 if stopped.at_once else LEFTOVERS_S)
        mend_terminal(is_torn=status < 0)
        return status

    def _pause(self, seconds: float, stopped: Stopped) -> None:
        deadline_s = time.monotonic() + seconds
        while stopped.number is None and time.monotonic() < deadline_s:
            time.sleep(POLL_S)

    def _write(self, attempt: Attempt) -> None:
        if not self._run.is_dir() or is_bare(self._run):
            return  # refused before there was a run: what it printed is all there is
        try:
            write_attempt(self._run, attempt)
        except OSError as error:
            self._say(f"restarts.jsonl could not be written: {error.strerror}")


def _status_of(pid: int) -> int | None:
    """Wait for every child that is dead, adopted orphans too; the status of one of them, None if it lives."""
    while True:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == 0:
            return None
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def _at(step: int) -> str:
    return f"step {step}" if step else "the start"


def train_command(arguments: Sequence[str]) -> list[str]:
    """`foreframe train` of this installation."""
    return [sys.executable, "-m", "launch", "train", *arguments]
