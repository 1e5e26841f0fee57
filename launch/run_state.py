"""Whether a run lives, and how the one that does not has ended: told from its folder, and how that is known.

The process that trains holds a lock on the folder (`launch/lock.py`). Of this machine's processes the kernel
lists who holds it, so nobody has to try; a lock that was taken on another machine is not seen here, and what
counts then is when something was written last. Imports no torch.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import EXIT_OK, EXIT_PREEMPTED
from data_pipeline.storage import open_regular
from launch.attempts import Attempt, duration, without_advice
from launch.failure import FAILURE_FILE
from launch.lock import LOCK_FILE
from launch.run_files import Reader, finite
from launch.submitted import Submitted

Word = Literal["running", "finished", "stopped", "preempted", "failed", "hung", "silent", "submitted"]
LOCKS = Path("/proc/locks")
PREEMPTING = ("SIGTERM", "SIGUSR1", "another rank was asked")
WRITTEN = ("metrics.jsonl", "health.jsonl", "probes.jsonl", LOCK_FILE, "checkpoints")
HANG_S = 900.0  # where train.hang_s is null, or config.yaml cannot be read
FRESH_S = 120.0


@dataclass(frozen=True)
class State:
    """Of a run. known_by: what says so. reason: why it ended, "" where that is in the word.

    seen_s: seconds since something was written; None when nothing was. pid, host: of the process that trains,
    or trained last, as far as its lock says. exit_code: of a failure that was told.
    """

    word: Word
    known_by: str
    reason: str = ""
    seen_s: float | None = None
    pid: int | None = None
    host: str | None = None
    exit_code: int | None = None

    @property
    def is_alive(self) -> bool:
        return self.word in ("running", "hung", "silent")


@dataclass(frozen=True)
class Lock:
    """A lock file. is_held: by a process of this machine; None where the kernel does not tell."""

    pid: int | None
    host: str | None
    is_held: bool | None


def read_lock(path: Path, locks: Path = LOCKS) -> Lock:
    """What is known of a lock without trying to take it, which could refuse it to a run that starts."""
    try:
        with open_regular(path) as file:
            written, facts = file.read().decode(errors="replace").split(), os.fstat(file.fileno())
    except OSError:
        return Lock(None, None, False)
    pid = int(written[0]) if written and written[0].isdecimal() else None
    host = written[1] if len(written) > 1 else None
    try:
        rows = [row.split() for row in locks.read_text().splitlines()]
    except OSError:  # no Linux
        return Lock(pid, host, None)
    inode = str(facts.st_ino)
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{inode}"
    for row in rows:
        # 1: FLOCK ADVISORY WRITE 31451 08:01:131077 0 EOF; `1: -> FLOCK …` is one that waits
        if len(row) < 6 or row[1] not in ("FLOCK", "POSIX") or row[3] != "WRITE":  # NFS makes them POSIX
            continue
        # Some file systems name another device there than stat does.
        if row[5] == device or (row[5].rpartition(":")[2] == inode and row[4] == str(pid)):
            return Lock(pid, host, True)
    return Lock(pid, host, False)


def last_written_s(run: Path) -> float | None:
    """When a run last wrote something, seconds since 1970; None when it has not."""
    found = []
    for path in [run / name for name in WRITTEN] + [*(run / "checkpoints").glob("step-*")]:
        try:
            found.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(found, default=None)


def state_of(
    reader: Reader,
    lines: Sequence[Mapping[str, Any]],
    attempts: Sequence[Attempt],
    hang_s: float | None = HANG_S,
    *,
    submission: Submitted | None = None,
    now_s: float | None = None,
    host: str | None = None,
    locks: Path = LOCKS,
) -> State:
    """lines: the last ones of metrics.jsonl. hang_s: as the run is configured. submission: the one that
    counts. host: this machine's name.
    """
    run, here = reader.run, host or socket.gethostname()
    lock = read_lock(run / LOCK_FILE, locks)
    written_s = last_written_s(run)
    seen_s = None if written_s is None else max(0.0, (now_s or time.time()) - written_s)
    own_host = lock.host or str((reader.document("provenance.json") or {}).get("host") or "") or None
    interval_s = longest_pause_s(lines)

    def state(word: Word, known_by: str, reason: str = "", exit_code: int | None = None) -> State:
        return State(word, known_by, reason, seen_s, lock.pid, own_host, exit_code)

    if lock.is_held:
        limit_s = max(HANG_S if hang_s is None else hang_s, 3 * interval_s)
        known_by = f"process {lock.pid} holds the run's folder"
        if seen_s is not None and seen_s > limit_s:
            return state("hung", known_by, f"nothing was written for {duration(seen_s)}")
        return state("running", known_by)
    if any(read_lock(path, locks).is_held for path in sorted(run.glob(f"{LOCK_FILE}-supervise-*"))):
        return state("running", "its supervisor holds the run's folder", "between two attempts")
    if (ended := _ended(reader, attempts)) is not None:
        return state(*ended)
    is_elsewhere = lock.pid is not None and own_host is not None and own_host != here
    if is_elsewhere or lock.is_held is None:
        where = f" on {own_host}" if is_elsewhere else ""
        known_by = f"its process{where} is not seen from here; last sign of life {_ago(seen_s)}"
        is_fresh = seen_s is not None and seen_s < max(FRESH_S, 5 * interval_s)
        return state("running" if is_fresh else "silent", known_by)
    if lock.pid is None and not lines:
        if submission is not None:
            return state(*_not_begun(submission))
        return state("stopped", "nobody holds the run's folder, and nothing was logged", "it has not begun")
    known_by = "nobody holds the run's folder, and there is no result.json"
    stacks = sorted(path.name for path in (run / "hangs").glob("*.txt"))
    if stacks and written_s is not None and (run / "hangs" / stacks[-1]).stat().st_mtime > written_s:
        return state("failed", known_by, f"it hung; the stacks of its threads are in hangs/{stacks[-1]}")
    return state("failed", known_by, "it ended without a word: killed, or the machine was")


def _ended(reader: Reader, attempts: Sequence[Attempt]) -> tuple[Word, str, str, int | None] | None:
    """How the run ended as it says itself, where, why, with which exit code; None where it does not."""
    result = reader.document("result.json")
    if result is not None:
        stopped = result.get("stopped")
        if stopped is None:
            return "finished", "result.json", "", EXIT_OK
        is_preempted = str(stopped).startswith(PREEMPTING)
        return "preempted" if is_preempted else "stopped", "result.json", str(stopped), EXIT_PREEMPTED
    failure = reader.document(FAILURE_FILE)
    if failure is not None:
        is_preempted = failure.get("kind") == "PreemptedError"
        told = without_advice(str(failure.get("sentence", "")))
        code = finite(failure.get("exit_code"))
        return (
            "preempted" if is_preempted else "failed",
            FAILURE_FILE,
            told,
            None if code is None else int(code),
        )
    if attempts and attempts[-1].exit_code != EXIT_OK and attempts[-1].sentence:
        return "failed", "restarts.jsonl", without_advice(attempts[-1].sentence), attempts[-1].exit_code
    return None


def sharding_state(submission: Submitted) -> State:
    """Of a data set's submission: its own folder is all that is looked at."""
    if submission.end is not None and submission.end.exit_code == EXIT_OK:
        return State("finished", _of(submission), exit_code=EXIT_OK)
    if submission.is_open and submission.is_seen:
        return State("running", "its process lives on this machine")
    word, known_by, reason, code = _not_begun(submission, "its end is not seen from here")
    return State(word, known_by, reason, exit_code=code)


def _of(submission: Submitted) -> str:
    return f"submissions/{submission.number}, of {submission.when}"


def _not_begun(submission: Submitted, waiting: str = "it has not begun") -> tuple[Word, str, str, int | None]:
    """Of a folder in which nothing but submissions is. waiting: what is said of one that may run."""
    known_by, end = _of(submission), submission.end
    if submission.is_open:
        return "submitted", known_by, f"{submission.name}: {waiting}", None
    if submission.is_handed_over and end is not None:
        is_saved = end.exit_code in (EXIT_OK, EXIT_PREEMPTED)
        word: Word = "failed" if not is_saved else "preempted" if end.exit_code else "stopped"
        return word, known_by, submission.says, end.exit_code
    is_dry = submission.state == "dry run"
    told = "nothing but a dry run" if is_dry else submission.state or "it has not begun"
    return ("stopped" if is_dry else "failed"), known_by, told, None


def longest_pause_s(lines: Sequence[Mapping[str, Any]]) -> float:
    """The longest time between two of the lines, of one start; 0 of fewer than two."""
    times = [finite(line.get("time_s")) for line in lines]
    pauses = [b - a for a, b in pairwise(times) if a is not None and b is not None]
    return max(0.0, max(pauses, default=0.0))


def _ago(seen_s: float | None) -> str:
    return "never" if seen_s is None else f"{duration(seen_s)} ago"
