"""A rank in which nothing moves: noticed, its threads' stacks written down, the run ended.

What moves is what the rank and its loader workers beat (`pretrain.pulse`) and what they read from disks and
write to them, so a long save, a cold start or a slow first batch is no hang. Each rank looks at itself in a
thread; the process that started the ranks looks too, at ranks that cannot: stopped, or stuck in C.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception
from typing import IO, TypeVar

from data_pipeline.errors import EXIT_LOST_PEER, HangError
from data_pipeline.storage import write_whole
from launch.ending import how_to_go_on, leave_end, leave_rank_error
from launch.processes import facts_of, send
from pretrain import pulse

HANGS_FOLDER = "hangs"
STARTER_WAITS_S = 5.0  # longer than the ranks' own watchdogs
DUMP_S = 3.0  # for the stacks of the others
T = TypeVar("T")
COPY_S = 10.0  # the run's folder may be what hangs
STATES = {"T": "stopped by a signal", "Z": "gone", "D": "waiting for a disk or device"}  # of /proc


class Stillness:
    """For how long nothing has moved in a rank. path: of its pulse."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._seen: object = None
        self._since_s = clock()

    def seconds(self) -> float:
        seen = self._look()
        if seen != self._seen:
            self._seen, self._since_s = seen, self._clock()
        return self._clock() - self._since_s

    def _look(self) -> object:
        try:
            beats = pulse.read(self._path)
        except OSError:
            return None
        return [(each.beats, bytes_moved(each.pid)) for each in beats]


def bytes_moved(pid: int) -> tuple[str, ...]:
    """What a process has read from disks and written to them, as the kernel counts; () where it does not."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return ()
    return tuple(line for line in lines if line.startswith(("read_bytes", "write_bytes")))


@dataclass(frozen=True)
class Seen:
    """A rank of this machine as its pulse and /proc show it. state: of /proc, Z also when it is gone."""

    rank: int
    pid: int
    state: str
    step: int
    place: str

    @property
    def how_far(self) -> tuple[int, int]:
        return self.step, pulse.PLACES.index(self.place)

    @property
    def where(self) -> str:
        doing = f"at step {self.step} ({self.place})" if self.step else self.place
        return f"{STATES[self.state]}, {doing}" if self.state in STATES else doing

    def __str__(self) -> str:
        return f"rank {self.rank} is {self.where}"


def pulse_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pulse"


def stacks_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.stacks"


def ranks_seen(folder: Path) -> list[Seen]:
    """The ranks that beat in a folder."""
    found = []
    for path in sorted(folder.glob("rank-*.pulse")):
        with suppress(OSError, IndexError):
            own = pulse.read(path)[0]
            facts = facts_of(own.pid)
            state = "Z" if facts is None and Path("/proc").is_dir() else facts.state if facts else "S"
            rank = int(path.stem.removeprefix("rank-"))
            found.append(Seen(rank, own.pid, state, own.step, own.place))
    return found


def behind(ranks: list[Seen]) -> list[Seen]:
    """Those that hold the others up: gone, else stopped, else at an earlier place than the rest; or none."""
    for state in ("Z", "T"):
        if found := [seen for seen in ranks if seen.state == state]:
            return found
    least = min((seen.how_far for seen in ranks), default=None)
    found = [seen for seen in ranks if seen.how_far == least]
    return found if len(found) < len(ranks) or len(ranks) == 1 else []


def what_hangs(ranks: list[Seen], seconds: float, limit: str, elsewhere: int = 0) -> str:
    """Which rank has not moved, for how long and where; what the others do; `limit` names the setting.

    elsewhere: ranks on other machines, of which nothing is seen here.
    """
    blamed = behind(ranks)
    if elsewhere and len(blamed) == len(ranks) and not any(seen.state in ("T", "Z") for seen in ranks):
        blamed = []
    others = [seen for seen in ranks if seen not in blamed]
    time_s = f"for {seconds:.0f} s ({limit})"
    if not blamed:
        of = "the rank" if elsewhere == 1 else f"the {elsewhere} ranks"
        away = f", {of} on other machines may be gone or cut off" if elsewhere else ""
        told = f"no rank of this machine has moved {time_s}{away}"
    else:
        names = " and ".join(f"rank {seen.rank}" for seen in blamed)
        told = f"{names} {'has' if len(blamed) == 1 else 'have'} not moved {time_s}"
    return f"{told}: " + ", ".join(str(seen) for seen in [*blamed, *others])


def dump_stacks(folder: Path, run: Path, own: IO[bytes] | None = None) -> str:
    """Write the stacks of all threads of this machine's ranks into the run, once for all who ask.

    own: this process's stacks file, when it is a rank. A stopped process has none to give: its file says so.
    Returns the files' path up to the rank.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    begin, copied = run / HANGS_FOLDER / stamp, folder / "copied"
    try:
        (folder / "dumping").touch(exist_ok=False)
    except FileExistsError:  # another is at it, and wants this process's stacks
        _wait_until(lambda: copied.exists(), DUMP_S + COPY_S)
        return copied.read_text() if copied.exists() else str(begin.parent / "*")
    ranks = ranks_seen(folder)
    if own is not None:
        faulthandler.dump_traceback(own, all_threads=True)
    asked = [seen for seen in ranks if seen.pid != os.getpid() and seen.state not in ("T", "Z")]
    for seen in asked:
        send(seen.pid, signal.SIGUSR2)
    _wait_for([stacks_file(folder, seen.rank) for seen in asked])

    def copy() -> None:
        with suppress(OSError):  # a full disk must not keep the run from ending
            begin.parent.mkdir(exist_ok=True)
            for seen in ranks:
                path = stacks_file(folder, seen.rank)
                stacks = path.read_bytes() if path.exists() else b""
                missing = b"" if stacks else b"no stacks: it did not answer\n"
                head = f"{seen}; process {seen.pid}\n".encode()
                begin.with_name(f"{stamp}-rank-{seen.rank:05d}.txt").write_bytes(head + missing + stacks)

    within(COPY_S, copy, None)
    write_whole(copied, str(begin).encode())
    return str(begin)


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """What `work` returns, or `otherwise` when it takes longer: the run's folder may be what hangs."""
    found = [otherwise]
    thread = threading.Thread(target=lambda: found.append(work()), name="within", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[-1]


def _wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.1)


def _wait_for(files: list[Path]) -> None:
    """Until each has something in it and grows no more, at most DUMP_S."""
    sizes: list[int] = []

    def are_written() -> bool:
        before, sizes[:] = list(sizes), [path.stat().st_size if path.exists() else 0 for path in files]
        return all(sizes) and before == sizes

    _wait_until(are_written, DUMP_S)


def hang_error(
    folder: Path, run: Path, seconds: float, limit: str, elsewhere: int, own: IO[bytes] | None = None
) -> HangError:
    """What to tell the user, once the stacks are written down; `what_hangs` explains the rest."""
    told = what_hangs(ranks_seen(folder), seconds, limit, elsewhere)
    begin = dump_stacks(folder, run, own)
    go_on = within(COPY_S, lambda: how_to_go_on(run), f"`foreframe train {run}` goes on")
    return HangError(f"{told}; stacks of all threads are in {begin}-rank-*.txt; {go_on}")


class Watchdog:
    """Looks at this rank until `stop`; ends the process with exit code 6 when nothing moved for `hang_s`."""

    def __init__(self, run: Path, folder: Path, rank: int, hang_s: float | None, elsewhere: int) -> None:
        self._elsewhere = elsewhere
        self._run, self._folder, self._rank, self._hang_s = run, folder, rank, hang_s
        import pretrain.checkpoint  # noqa: F401 (what names it after a hang finds no lock of an import)

        pulse.begin(pulse_file(folder, rank))
        self._stacks = stacks_file(folder, rank).open("wb", buffering=0)
        faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if hang_s is not None:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()
        pulse.end()

    def timed_out(self, error: Exception, seconds: float, limit: str) -> HangError:
        """The error of a collective that took longer than it may; the stacks say where."""
        self._stop.set()  # one of both tells
        self._stacks.write("".join(["It gave up waiting:\n", *format_exception(error)]).encode())
        return hang_error(self._folder, self._run, seconds, limit, self._elsewhere, self._stacks)

    def _watch(self) -> None:
        assert self._hang_s is not None
        still = Stillness(pulse_file(self._folder, self._rank))
        while not self._stop.wait(min(5.0, self._hang_s / 10)):
            seconds = still.seconds()
            if seconds > self._hang_s:
                self._end(seconds)

    def _end(self, seconds: float) -> None:
        """The rank cannot end itself: its threads hang."""
        error = hang_error(self._folder, self._run, seconds, "train.hang_s", self._elsewhere, self._stacks)
        if not leave_rank_error(self._rank, error):  # nobody started this rank who would tell
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            leave_end(error.exit_code, type(error).__name__, str(error), may_pass=error.may_pass)
        os._exit(EXIT_LOST_PEER)


@contextmanager
def watching(run: Path, folder: Path, rank: int, hang_s: float | None, elsewhere: int) -> Iterator[Watchdog]:
    """A watchdog of this rank. folder: of the ranks of one starter. elsewhere: ranks that beat in others."""
    watchdog = Watchdog(run, folder, rank, hang_s, elsewhere)
    try:
        yield watchdog
    finally:
        watchdog.stop()
