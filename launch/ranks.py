"""The ranks of a run on this machine: started, waited for, ended, and what they ended with as one error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import (
    EXIT_LOST_PEER,
    EXIT_PREEMPTED,
    ForeframeError,
    HangError,
    LostPeerError,
)
from data_pipeline.scratch import scratch_folder
from launch.config import dump_config
from launch.console import mend_terminal
from launch.ending import END_VARIABLE, ERRORS_VARIABLE, how_to_go_on
from launch.meeting import Job, meet
from launch.processes import POLL_S, Asked, end_groups, facts_of, send
from launch.watchdog import STARTER_WAITS_S, Stillness, hang_error, pulse_file
from pretrain.config import RunConfig

QUIET_VARIABLE = "FOREFRAME_QUIET"
ALLOWED_VARIABLE = "FOREFRAME_ALLOWED_CHANGES"
PROFILE_VARIABLE = "FOREFRAME_PROFILE"
SAVE_S = 600.0  # ranks that were asked to stop may take this long for their last save
FAILED_S = 30.0  # after one failed, the others have this long to end by themselves
LOST_S = 15.0  # the same after a hang, or a rank that was killed
LEFTOVERS_S = 5.0  # what a rank started ends by itself within moments
HANG, KILLED = HangError.__name__, "KilledError"


class Options(NamedTuple):
    """What was asked for beside the config. profile: steps to record."""

    quiet: bool = False
    allow_change: Sequence[str] = ()
    profile: int | None = None


def given_options() -> Options:
    """Of a rank, from who started it."""
    allowed, steps = os.environ.get(ALLOWED_VARIABLE, ""), os.environ.get(PROFILE_VARIABLE)
    return Options(bool(os.environ.get(QUIET_VARIABLE)), allowed.split(), int(steps) if steps else None)


class RankError(ForeframeError):
    """An error that a rank has ended with, told by the process that started it."""

    def __init__(self, text: str, exit_code: int, kind: str = "RankError", *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.exit_code, self.kind, self.may_pass = exit_code, kind, may_pass


class PreemptedError(ForeframeError):
    """Asked to stop: the state is saved, the same command goes on."""

    exit_code = EXIT_PREEMPTED
    label = "stopped"
    may_pass = True


@dataclass
class Rank:
    """A rank's process, in a session of its own: a signal to this process's group does not reach it."""

    rank: int
    process: subprocess.Popen[bytes]
    still: Stillness
    was_ended: bool = False  # by this process, so that its exit code says nothing

    def end(self) -> None:
        """At once, also when it is stopped; its workers and their helpers see that, and clean up."""
        if self.process.poll() is None:
            self.was_ended = True
            send(self.process.pid, signal.SIGKILL)


def spawn_ranks(
    run: Path,
    config: RunConfig,
    job: Job,
    *,
    quiet: bool,
    allow_change: Sequence[str] = (),
    profile: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Start this machine's ranks of a job, once all its machines are there, and wait for their end.

    Raises: what a rank ended with, once all ranks here are gone; UsageError, LostPeerError when the machines
    do not meet.
    """
    with scratch_folder() as folder, Asked() as asked:
        given = folder / "config.yaml"  # the run's own is on a store that may be late here
        given.write_text(dump_config(config))
        met = meet(job, lambda: asked.number is not None, say)
        if met is None:
            raise PreemptedError(f"{_name(asked)} received before any rank was started; {how_to_go_on(run)}")
        # Python's tracker of semaphores removes those of a killed rank; its warning would only puzzle.
        hushed = ("-W", "ignore:resource_tracker:UserWarning")
        command = [sys.executable, *hushed, "-m", "launch.train", str(given), str(os.getpid())]
        shared = {
            **{key: value for key, value in os.environ.items() if key != END_VARIABLE},
            **met.environment,
            ERRORS_VARIABLE: str(folder),
            ALLOWED_VARIABLE: " ".join(allow_change),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_for(None, job.nproc))),
            "LOCAL_WORLD_SIZE": str(job.nproc),
            "WORLD_SIZE": str(job.world_size),
            "GROUP_RANK": str(job.node_rank),
            **({QUIET_VARIABLE: "1"} if quiet else {}),
            PROFILE_VARIABLE: str(profile or ""),
        }
        ranks: list[Rank] = []
        try:
            for local in range(job.nproc):
                number = job.node_rank * job.nproc + local
                own = {**shared, "RANK": str(number), "LOCAL_RANK": str(local)}
                process = subprocess.Popen(command, env=own, start_new_session=True)
                ranks.append(Rank(number, process, Stillness(pulse_file(folder, number))))
            elsewhere = job.world_size - job.nproc
            hang = _wait(ranks, asked, folder, run, config.train.hang_s, elsewhere)
        finally:  # also after a second Ctrl-C
            for rank in ranks:
                rank.end()
                rank.process.wait()
            end_groups({rank.process.pid for rank in ranks}, LEFTOVERS_S)
            codes = [rank.process.returncode for rank in ranks]
            mend_terminal(is_torn=any(code < 0 or code == EXIT_LOST_PEER for code in codes))
        if hang is not None:
            raise hang
        _raise_what_ended(run, folder, ranks, asked)


def _wait(
    ranks: Sequence[Rank], asked: Asked, folder: Path, run: Path, hang_s: float | None, elsewhere: int
) -> HangError | None:
    """Until no rank is left. Returns what is to be told of ranks that could not even tell of their hang."""
    deadline_s, was_asked = float("inf"), False
    while alive := [rank for rank in ranks if rank.process.poll() is None]:
        now_s = time.monotonic()
        if asked.number is not None and not was_asked:
            was_asked = True
            number = signal.SIGTERM if asked.number == signal.SIGHUP else asked.number
            for rank in alive:
                send(rank.process.pid, number)
            deadline_s = min(deadline_s, now_s + SAVE_S)
        if failed := [rank.process.returncode for rank in ranks if rank.process.returncode]:
            is_lost = any(code < 0 or code == EXIT_LOST_PEER for code in failed)
            deadline_s = min(deadline_s, now_s + (LOST_S if is_lost else FAILED_S))
            if is_lost and all(_is_stopped(rank) for rank in alive):
                deadline_s = now_s
        if now_s >= deadline_s:
            for rank in alive:
                rank.end()
        elif hang_s is not None:
            still_s = max(rank.still.seconds() for rank in alive)
            if still_s > hang_s + STARTER_WAITS_S:
                return hang_error(folder, run, still_s, "train.hang_s", elsewhere)
        time.sleep(POLL_S)
    return None


def _is_stopped(rank: Rank) -> bool:
    facts = facts_of(rank.process.pid)
    return facts is not None and facts.state == "T"


def _name(asked: Asked) -> str:
    return asked.number.name if asked.number is not None else "a signal"


def _raise_what_ended(run: Path, folder: Path, ranks: Sequence[Rank], asked: Asked) -> None:
    failed = {rank.rank: rank.process.returncode for rank in ranks if rank.process.returncode}
    if not failed:
        return
    own = {rank.rank: rank.process.returncode for rank in ranks if not rank.was_ended}
    codes = {rank: code for rank, code in own.items() if code}
    error = why_ranks_failed(run, folder, codes) if codes else None
    if asked.number is not None and (error is None or error.exit_code == EXIT_LOST_PEER):
        error = LostPeerError(f"stopped by {_name(asked)} without a save; {how_to_go_on(run)}")
    assert error is not None, "ranks are ended early only when one failed, hung or was asked to stop"
    raise error


def why_ranks_failed(run: Path, errors: Path, exit_codes: dict[int, int]) -> ForeframeError:
    """The error to show for ranks that failed: what a rank said itself comes before what befell it.

    exit_codes: by rank; negative where a signal ended it.
    """
    told = [json.loads(path.read_bytes()) for path in sorted(errors.glob("rank-*.json"))]
    for record in told:
        if record["exit_code"] == EXIT_PREEMPTED:
            return PreemptedError(record["text"])
    told.sort(key=lambda record: record["exit_code"] == 1)  # a crash of one may be another's full disk
    first = next((record for record in told if record["exit_code"] != EXIT_LOST_PEER), None)
    first = first or next((record for record in told if record.get("kind") == HANG), None)
    if first is not None:
        kind, may_pass = first.get("kind", "RankError"), first.get("may_pass", False)
        return RankError(first["text"], first["exit_code"], kind, may_pass=may_pass)
    killed = {rank: -code for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        hints = {
            signal.SIGKILL: ", often the kernel out of memory,",
            signal.SIGABRT: ", as NCCL does after strategy.timeout_s,",
        }
        text = (
            f"rank {rank} was killed by {signal.Signals(number).name}{hints.get(signal.Signals(number), '')} "
            f"and the others stopped; {how_to_go_on(run)}"
        )
        return LostPeerError(text)
    if told:
        return LostPeerError(told[0]["text"])
    rank, code = next(iter(exit_codes.items()))
    text = f"rank {rank} failed with exit code {code}, see above; {how_to_go_on(run)}"
    return RankError(text, 1, may_pass=True)


def threads_for(wanted: int | None, ranks_here: int) -> int:
    """CPU threads of one rank: as configured, or the machine's cores shared out."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // ranks_here)


def use_threads(count: int) -> None:
    """Of this process from now on, in torch and in numpy's linear algebra, which probes do beside training.

    With a thread a core, that would wait in loops for cores that are taken.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")


def ranks_here() -> int:
    """How many ranks share this machine, as who started them says; DeepSpeed's launcher says LOCAL_SIZE."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def end_rank() -> None:
    """End a rank whose work is done and saved, without the interpreter's teardown.

    Collective libraries may keep threads of their own; one that is still running when C++ destroys it aborts
    the process (seen with gloo on a loaded machine), and a finished run would be told as a crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
