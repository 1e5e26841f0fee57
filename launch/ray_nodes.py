"""`foreframe shard` over several machines: the first starts a Ray and drives, the others lend their cores.

The first node starts Ray's head at the rendezvous, waits a while for the others, and runs the very command
of one machine on what is there. Who comes later joins, who is lost is missed by nobody: tasks run elsewhere.
When the command has ended, its exit code stands on the board until the others have read it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.errors import EXIT_OK, EXIT_PREEMPTED, LostPeerError, UsageError
from data_pipeline.format import DATASET_FILE
from data_pipeline.storage import Storage
from launch.console import make_console
from launch.meeting import MEETING_S, Job, address
from launch.processes import POLL_S, SUPERVISOR_VARIABLE, adopt_orphans, end_descendants, send
from launch.ray_board import END, JOB, Board
from launch.ray_board import POLL_S as LOOK_S
from launch.ray_start import (
    check_free,
    clear,
    cores_here,
    end_ray,
    last_words,
    own_address,
    ray_folder,
    start_ray,
    use_token,
)
from launch.supervise import EXIT_INTERRUPTED, Stopped

GATHER_S = 60.0  # the first node begins after that without those that are not there yet
UP_S = 120.0  # Ray's start: seconds, on a loaded machine a minute
STOPS_S = 30.0  # a driver that was asked to stop
LEAVE_S = 20.0  # the others read how it ended, and go
LEFTOVERS_S = 5.0
SAY_AFTER_S = 5.0
FINISHED_S = 20.0  # a node waits so long for a first one before it asks whether there is anything left to do
STARTS, RESTART_S = 5, 5.0  # of Ray on a node that lends its cores

Say = Callable[[str], None]


def shard_on_node(
    config: DataConfig, arguments: Sequence[str], nnodes: int, node_rank: int, rendezvous: str | None
) -> int:
    """This machine's part of `foreframe shard ARGUMENTS`; the exit code.

    config: what the arguments come to. Raises: UsageError, LostPeerError.
    """
    job = Job(1, nnodes, node_rank, rendezvous)
    if config.ray.address is not None:
        raise UsageError(
            f"ray.address is {config.ray.address}: with --nnodes the first node starts a Ray of the job's "
            f"own; leave out one of them"
        )
    console = make_console()

    def say(sentence: str) -> None:
        console.print(f"  nodes  {sentence}", markup=False, highlight=False)

    def is_finished() -> bool:
        return not {"--force", "--redrive"} & set(arguments) and Storage(config.out).exists(DATASET_FILE)

    if not job.is_first:
        exit_code = run_other(job, say, is_finished)
    else:
        command = [sys.executable, "-m", "launch", "shard", *arguments]
        exit_code = run_first(job, command, say, waits=not is_finished())
    if exit_code == EXIT_PREEMPTED:
        say("stopped; nothing half-written counts, the same command goes on")
    return exit_code


def name_of(node: int) -> str:
    return f"node-{node}"


def versions() -> dict[str, str]:
    """What has to be the same on all nodes: Ray and Python to talk, the rest for equal bytes."""
    from data_pipeline.encode import encoder_versions

    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"ray": version("ray"), "python": python, **encoder_versions()}


def run_first(job: Job, command: Sequence[str], say: Say, *, waits: bool = True) -> int:
    """Node 0: Ray's head, and `command` with `--ray-address HOST:PORT` after it. Its exit code; 75 when this
    process was asked to stop.

    waits: for the other nodes, before it begins.
    Raises: UsageError when the address or port cannot be had; LostPeerError when Ray does not start.
    """
    host, port = address(str(job.rendezvous))
    own = own_address(host)
    check_free(own, port)
    use_token(is_first=True)
    adopt_orphans()
    with ray_folder() as folder, Stopped() as stopped:
        head = ["--head", f"--port={port}", f"--node-ip-address={own}", "--include-dashboard=false"]
        try:
            ray = start_ray(folder, head, name=name_of(0), cpus=cores_here())
            board = Board(own, port)
            if not _is_up(board, name_of(0), ray, folder, stopped):
                return _asked(stopped)
            note = {"id": uuid.uuid4().hex, "nnodes": job.nnodes, "versions": versions()}
            board.write(JOB, note, UP_S, lambda: ray.poll() is not None or stopped.at_once)
            there = _gather(board, ray, job, say, stopped) if waits else {name_of(0)}
            if stopped.number is not None:
                exit_code = _asked(stopped)
            else:
                at = f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
                exit_code = _drive([*command, "--ray-address", at], ray, board, there, say, stopped)
            _part(board, ray, exit_code, stopped)
            return exit_code
        finally:
            end_descendants(0.0 if stopped.at_once else LEFTOVERS_S)


def _is_up(board: Board, name: str, ray: subprocess.Popen[bytes], folder: Path, stopped: Stopped) -> bool:
    """Wait until a node of this machine is one of Ray's; False when asked to stop.

    Raises: LostPeerError, with what Ray printed, when it is not.
    """
    deadline_s = time.monotonic() + UP_S
    while stopped.number is None:
        if ray.poll() is not None or time.monotonic() > deadline_s:
            what = "ended at its start" if ray.poll() is not None else f"did not start within {UP_S:.0f} s"
            raise LostPeerError(f"Ray {what} on this machine; the last it printed:{last_words(folder)}")
        try:
            if name in board.nodes():
                return True
        except LostPeerError:
            pass  # not yet
        time.sleep(POLL_S * 4)
    return False


def _gather(board: Board, ray: subprocess.Popen[bytes], job: Job, say: Say, stopped: Stopped) -> set[str]:
    """Wait for the other nodes, but not for ever: a job does not stand still for one machine. Who is there.

    Raises: LostPeerError when Ray ended on this one.
    """
    wanted, there = {name_of(node) for node in range(job.nnodes)}, {name_of(0)}
    began_s, has_said = time.monotonic(), False
    while stopped.number is None:
        with _no_news(ray):
            there = board.nodes()
        if not (missing := wanted - there):
            break
        waited_s = time.monotonic() - began_s
        names = ", ".join(sorted(missing, key=_number)[:5]) + (" and more" if len(missing) > 5 else "")
        if waited_s > GATHER_S:
            say(
                f"{len(missing)} of {job.nnodes} nodes not there after {GATHER_S:.0f} s ({names}): "
                f"begun without; a node that comes later joins"
            )
            break
        if waited_s > SAY_AFTER_S and not has_said:
            has_said = True
            say(f"waiting up to {GATHER_S:.0f} s for {len(missing)} of {job.nnodes} nodes: {names}")
        time.sleep(POLL_S * 4)
    return there


def _number(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def _drive(
    command: Sequence[str],
    ray: subprocess.Popen[bytes],
    board: Board,
    there: set[str],
    say: Say,
    stopped: Stopped,
) -> int:
    """The driver, from its start to its end, and who of the nodes comes and goes meanwhile.

    there: the nodes at its start.
    """
    environment = {**os.environ, SUPERVISOR_VARIABLE: str(os.getpid())}
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    looked_s, is_forwarded, deadline_s = time.monotonic(), False, float("inf")
    while (status := driver.poll()) is None:
        if stopped.number is not None and not is_forwarded:
            is_forwarded, deadline_s = True, time.monotonic() + STOPS_S
            send(driver.pid, signal.SIGTERM)
        if ray.poll() is not None:  # the driver cannot outlast it, and may not have noticed
            deadline_s = min(deadline_s, time.monotonic() + LEFTOVERS_S)
        if stopped.at_once or time.monotonic() > deadline_s:
            deadline_s = float("inf")
            send(driver.pid, signal.SIGKILL)
        if time.monotonic() - looked_s > LOOK_S and ray.poll() is None and not is_forwarded:
            there, looked_s = _tell_changes(board, there, say), time.monotonic()
        time.sleep(POLL_S)
    if stopped.number is not None:
        return EXIT_OK if status == EXIT_OK else _asked(stopped)
    if ray.poll() is not None:
        raise LostPeerError("Ray's own processes ended on the first node; the same command goes on")
    if status < 0:
        name = signal.Signals(-status).name
        raise LostPeerError(f"the driver of the job was killed by {name}; the same command goes on")
    return status


@contextmanager
def _no_news(ray: subprocess.Popen[bytes]) -> Iterator[None]:
    """A Ray that does not answer is busy, as while a hundred nodes join, unless it has ended here."""
    try:
        yield
    except LostPeerError:
        if ray.poll() is not None:
            raise


def _tell_changes(board: Board, before: set[str], say: Say) -> set[str]:
    try:
        there = board.nodes()
    except LostPeerError:
        return before  # busy; whether Ray lives is seen from its process
    for name in sorted(there - before, key=_number):
        say(f"{name} joined, {len(there)} nodes now")
    for name in sorted(before - there, key=_number):
        say(f"{name} was lost, {len(there)} of {len(before)} left: what it had in hand is done again there")
    return there


def _part(board: Board, ray: subprocess.Popen[bytes], exit_code: int, stopped: Stopped) -> None:
    """Leave word of the end, and give the others the time to read it."""
    try:
        board.write(END, {"exit_code": exit_code}, LEAVE_S, lambda: ray.poll() is not None or stopped.at_once)
        deadline_s = time.monotonic() + LEAVE_S
        while time.monotonic() < deadline_s and not stopped.at_once:
            with _no_news(ray):
                if not board.nodes() - {name_of(0)}:
                    return
            time.sleep(POLL_S * 4)
    except LostPeerError:
        return  # Ray is gone already: the others see that it is


def _asked(stopped: Stopped) -> int:
    return EXIT_INTERRUPTED if stopped.number == signal.SIGINT else EXIT_PREEMPTED


def run_other(job: Job, say: Say, is_finished: Callable[[], bool]) -> int:
    """Any other node: lends its cores until the first says how the job ended; that exit code.

    is_finished: whether there is nothing to do any more, asked when no first node is to be found, or is gone.
    Raises: LostPeerError when the first node never came or went without a word; UsageError when this node
    has other versions than it.
    """
    use_token(is_first=False)
    adopt_orphans()
    with ray_folder() as folder, Stopped() as stopped:
        try:
            first = _find_first(job, say, stopped, is_finished)
            if first is None:
                return EXIT_OK if stopped.number is None else _asked(stopped)
            board, found = first
            _check(job, found)
            return _lend(board, found, job, folder, say, stopped)
        except LostPeerError:
            if not is_finished():
                raise
            say("the first node ended before this one had joined, and the data set is finished")
            return EXIT_OK
        finally:
            end_descendants(0.0 if stopped.at_once else LEFTOVERS_S)


def _find_first(
    job: Job, say: Say, stopped: Stopped, is_finished: Callable[[], bool]
) -> tuple[Board, dict[str, Any]] | None:
    """The first node's board, and the job on it; None when asked to stop or when all is done."""
    host, port = address(str(job.rendezvous))
    began_s, has_said, has_asked = time.monotonic(), False, False
    while stopped.number is None:
        board = Board(host, port)
        try:
            if (found := board.read(JOB)) is not None:
                return board, found
        except LostPeerError:
            pass  # not yet
        waited_s = time.monotonic() - began_s
        if waited_s > FINISHED_S and not has_asked:
            has_asked = True
            if is_finished():
                say(f"no first node at {job.rendezvous}, and the data set is finished: nothing to do here")
                return None
        if waited_s > MEETING_S:
            raise LostPeerError(
                f"the first node did not come within {MEETING_S:.0f} s: start the same command with "
                f"--node-rank 0 there, and look whether {job.rendezvous} can be reached from "
                f"{socket.gethostname()}"
            )
        if waited_s > SAY_AFTER_S and not has_said:
            has_said = True
            say(f"waiting for the first node, {job.rendezvous}")
        time.sleep(LOOK_S)
    return None


def _check(job: Job, found: dict[str, Any]) -> None:
    """Raises: UsageError when this node was started otherwise than the first, or is another one."""
    if found["nnodes"] != job.nnodes:
        raise UsageError(f"--nnodes is {job.nnodes}: need {found['nnodes']}, as on node 0")
    here, there = versions(), found["versions"]
    differ = [
        f"{name} {here[name]} ({there.get(name)} there)" for name in here if here[name] != there.get(name)
    ]
    if differ:
        raise UsageError(
            f"{socket.gethostname()} has other versions than the first node, with which clips would come out "
            f"otherwise: {', '.join(differ)}. Install the same release of foreframe on all nodes"
        )


def _lend(board: Board, found: dict[str, Any], job: Job, folder: Path, say: Say, stopped: Stopped) -> int:
    """Ray on this node, started again when it alone is lost, until the first node's end; its exit code."""
    for attempt in range(STARTS):
        if attempt:
            say(f"Ray ended on this node, and is started again: attempt {attempt + 1} of {STARTS}")
            end_descendants(LEFTOVERS_S)
            clear(folder)
            _pause(RESTART_S, stopped)
        try:
            own = board.knock()
        except OSError as error:
            raise _lost(job) from error
        joins = [f"--address={job.rendezvous}", f"--node-ip-address={own}"]
        ray = start_ray(folder, joins, name=name_of(job.node_rank), cpus=cores_here())
        exit_code = _until_end(ray, board, found, job, stopped)
        if exit_code is not None:
            end_ray(ray)
            return exit_code
    raise LostPeerError(
        f"Ray ended {STARTS} times on this node, and the job goes on without it; the last it printed:"
        f"{last_words(folder)}"
    )


def _until_end(
    ray: subprocess.Popen[bytes], board: Board, found: dict[str, Any], job: Job, stopped: Stopped
) -> int | None:
    """The job's exit code, or that of a stop; None when Ray ended here. Raises: LostPeerError."""
    while ray.poll() is None:
        if stopped.number is not None:
            return _asked(stopped)
        if not board.is_there():
            raise _lost(job)
        exit_code = _end_of(board, found)
        if exit_code is not None:
            return exit_code
        time.sleep(LOOK_S)
    return None


def _lost(job: Job) -> LostPeerError:
    return LostPeerError(f"the first node, {job.rendezvous}, was lost: the same command on all nodes goes on")


def _end_of(board: Board, found: dict[str, Any]) -> int | None:
    """The exit code of a job that has ended, None while it runs or cannot be asked.

    Raises: LostPeerError when another job is there now.
    """
    try:
        now, end = board.read(JOB), board.read(END)
    except LostPeerError:
        return None
    if now is None or now["id"] != found["id"]:
        raise LostPeerError("the first node was lost, and another was started in its place: the same command")
    return None if end is None else int(end["exit_code"])


def _pause(seconds: float, stopped: Stopped) -> None:
    deadline_s = time.monotonic() + seconds
    while stopped.number is None and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
