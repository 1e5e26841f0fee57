"""Processes and their groups: found through /proc and by descent, ended by id, never by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from data_pipeline.errors import EXIT_LOST_PEER, EXIT_PREEMPTED

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of sys/prctl.h
SUPERVISOR_VARIABLE = "FOREFRAME_SUPERVISOR"
POLL_S = 0.05


@dataclass(frozen=True)
class Facts:
    """Of one process. state: R, S, D; T stopped by a signal; Z dead, and not yet waited for."""

    pid: int
    state: str
    parent: int
    group: int


def stop_signals() -> tuple[signal.Signals, ...]:
    """That ask a run to save and end. SIGHUP, of a terminal that was closed, is not one under `nohup`."""
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    is_heard = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (*asking, signal.SIGHUP) if is_heard else asking


class Asked:
    """Signals that ask this process to stop, kept while it is open: `number` is the first of them."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _: object) -> None:
        is_again = self.number is not None
        self.number = self.number or signal.Signals(number)
        if is_again and number == signal.SIGINT:
            self.again()

    def again(self) -> None:
        """Ctrl-C, when it was asked before: it does not wait for a save."""
        raise KeyboardInterrupt


def facts_of(pid: int) -> Facts | None:
    """What /proc says of a process; None when it is gone, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return Facts(pid, fields[0], int(fields[1]), int(fields[2]))


def everyone() -> list[Facts]:
    if not Path("/proc").is_dir():
        return []
    found = (facts_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [facts for facts in found if facts is not None]


def descendants(of: int) -> list[Facts]:
    """Children of a process, theirs, and so on; those that are dead already are not among them."""
    children: dict[int, list[Facts]] = {}
    for facts in everyone():
        children.setdefault(facts.parent, []).append(facts)
    found, left = [], list(children.get(of, ()))
    while left:
        facts = left.pop()
        found.append(facts)
        left += children.get(facts.pid, ())
    return [facts for facts in found if facts.state != "Z"]


def end_groups(groups: set[int], grace_s: float) -> None:
    """Wait up to `grace_s` for process groups to be empty; what is left in them gets SIGKILL."""
    deadline_s = time.monotonic() + grace_s
    while True:
        left = {facts.group for facts in everyone() if facts.group in groups and facts.state != "Z"}
        if not left:
            return
        if time.monotonic() > deadline_s:
            for group in left:
                send(-group, signal.SIGKILL)
            return
        time.sleep(POLL_S)


def end_descendants(grace_s: float) -> int:
    """End all that descends from this process: SIGTERM, after `grace_s` SIGKILL. Returns how many there were.

    A process that adopts orphans (`adopt_orphans`) finds those in sessions of their own, too.
    """
    left = descendants(os.getpid())
    count = len(left)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        for facts in left:
            send(facts.pid, number)
        deadline_s = time.monotonic() + wait_s
        while left and time.monotonic() < deadline_s:
            bury()
            time.sleep(POLL_S)
            left = descendants(os.getpid())
            if number == signal.SIGKILL:  # those that others were starting meanwhile
                for facts in left:
                    send(facts.pid, number)
    bury()
    return count


def bury() -> None:
    """Take note of every child that is dead."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def send(pid: int, number: int) -> None:
    """A signal to a process, or to a group as -pid; one that is gone needs none."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def adopt_orphans() -> None:
    """Descendants whose parents die become this process's children; Linux only, nothing elsewhere."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended; Linux only.

    Else a launcher killed by SIGKILL would leave ranks training in a folder that nobody holds any more.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the call
        os._exit(EXIT_LOST_PEER)


def end_with_supervisor() -> bool:
    """Under a supervisor, end when it is gone: else nobody would see this job any more.

    Returns whether there is one.
    """
    supervisor = os.environ.pop(SUPERVISOR_VARIABLE, None)
    if supervisor is not None:
        die_with_parent(int(supervisor))
    return supervisor is not None


@contextmanager
def stops_at_once(*, says: bool) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and a hangup end what runs in this `with` with exit code 75.

    For work that is whole or absent at every moment, and has nothing to save. says: a line of it.
    """

    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        if says and len(asked) == 1:
            name = signal.Signals(number).name
            sentence = f"stopped by {name}; nothing half-written counts, the same command goes on"
            print(sentence, file=sys.stderr)
        raise SystemExit(EXIT_PREEMPTED)

    heard = [number for number in stop_signals() if number != signal.SIGINT]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except BaseException:  # a library may end a call that was interrupted with an exit code of its own
        if asked:
            raise SystemExit(EXIT_PREEMPTED) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
