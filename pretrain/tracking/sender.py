"""A thread that brings jobs to a server in order, and keeps each until the server has taken it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import ForeframeError
from pretrain.tracking.base import Say, without_credentials

GATHER_S = 0.5  # points of this long go out together
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between attempts while the server is away


class AwayError(Exception):
    """The server did not take it; another attempt may fare better."""


class LeftOutError(Exception):
    """It can never be sent: the server refused it, or its file cannot be read."""


@dataclass(frozen=True)
class Job:
    """One thing to bring to the server: the points of a step, or any other call.

    call: raises AwayError, LeftOutError. what: names it in a sentence.
    """

    points: tuple[Any, ...] = ()
    call: Callable[[], Any] | None = None
    what: str = "points"


class Sender(threading.Thread):
    """Sends until `stop`.

    send: takes points, of at most `max_points` where several jobs are joined; raises AwayError, LeftOutError.
    connect: comes before all jobs, and is called until it returns; raises AwayError, or what ends the sender.
    It has failed before, with `away`.
    away_since: when the server stopped answering, by time.monotonic. is_dead: no job will be sent any more.
    """

    def __init__(
        self,
        send: Callable[[list[Any]], None],
        max_points: int,
        address: str,
        say: Say,
        connect: Callable[[], None] | None = None,
        away: AwayError | None = None,
    ) -> None:
        super().__init__(name="tracking-sender", daemon=True)
        self._send_points, self._max_points, self._address, self._say = send, max_points, address, say
        self._connect = connect
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._hurry = self._stop_asked = False
        self.is_dead = False
        self.away_since: float | None = None
        if away is not None:
            self._note_away(away)

    def put(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def put_first(self, jobs: Sequence[Job]) -> None:
        """Before those that wait: what `connect` found to be still to be sent."""
        with self._changed:
            self._jobs.extendleft(reversed(jobs))
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> int:
        """Wait until all is sent, the time is up, or nothing will be sent; how many jobs are left."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._jobs or self.is_dead, timeout_s)
            self._hurry = False
            return len(self._jobs)

    def stop(self) -> None:
        with self._changed:
            self._stop_asked = True
            self._changed.notify_all()

    def run(self) -> None:
        try:
            self._open()
            self._work()
        except (
            Exception
        ) as error:  # a tracker must not cost the run, nor have each flush wait for a dead thread
            with self._changed:
                self.is_dead = True
                self._changed.notify_all()
            is_named = isinstance(error, (ForeframeError, LeftOutError))
            told = f": {error}" if is_named else f" after an unexpected {_in_a_line(error)}"
            self._say(
                f"nothing more is sent to MLflow at {self._address}{told}; the run goes on, every "
                f"point is in metrics.jsonl and is sent when the run is resumed"
            )

    def _open(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._connect is not None and not self._stop_asked:
            self._pause(pause_s)
            try:
                self._connect()
            except AwayError as error:
                self._note_away(error)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._connect = None
                self._note_back()

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while jobs := self._next():
            try:
                self._send(jobs)
            except AwayError as error:
                self._note_away(error)
                self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            except LeftOutError as error:
                self._say(f"left out in MLflow: {jobs[0].what}: {without_credentials(str(error))}")
            pause_s = FIRST_PAUSE_S
            self._note_back()
            with self._changed:
                for _ in jobs:
                    self._jobs.popleft()
                self._changed.notify_all()

    def _note_away(self, error: AwayError) -> None:
        if self.away_since is None:
            self.away_since = time.monotonic()
            self._say(
                f"MLflow at {self._address} does not answer; the run goes on and its points are "
                f"kept until it does ({without_credentials(str(error))})"
            )

    def _note_back(self) -> None:
        if self.away_since is not None:
            away_s, self.away_since = time.monotonic() - self.away_since, None
            self._say(f"MLflow at {self._address} answers again after {away_s:.0f} s; sending what was kept")

    def _next(self) -> Sequence[Job]:
        """The points that may go in one request, or one other job; none when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stop_asked)
            if not (self._hurry or self._stop_asked):
                self._changed.wait_for(lambda: self._hurry or self._stop_asked, GATHER_S)
            if self._stop_asked or not self._jobs:
                return []
            first = self._jobs[0]
            if first.call is not None:
                return [first]
            taken: list[Job] = []
            count = 0
            for job in self._jobs:
                count += len(job.points)
                if job.call is not None or (taken and count > self._max_points):
                    break
                taken.append(job)
            return taken

    def _send(self, jobs: Sequence[Job]) -> None:
        call = jobs[0].call
        if call is None:
            self._send_points([point for job in jobs for point in job.points])
            return
        try:
            call()
        except (AwayError, LeftOutError):
            raise
        except (
            Exception
        ) as error:  # the clients of file stores (S3's, Azure's) share no base; it costs one file
            raise LeftOutError(_in_a_line(error)) from error

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stop_asked or self._hurry, seconds)
            if self._hurry:  # somebody waits, who will not for as long
                self._changed.wait_for(lambda: self._stop_asked, min(seconds, 1.0))


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {without_credentials(' '.join(str(error).split()))[:300]}"
