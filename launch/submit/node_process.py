"""One node's process of a job: started so that it outlives whoever started it, asked to stop, ended.

In the submission's logs: `node-N.log` is what it prints, `node-N.pid` holds "HOST PID STARTTIME" (host as it
was named to this file; start in clock ticks since boot, so that a number that another process has taken
meanwhile is never signalled), `node-N.exit` its exit code, once it has ended.

A keeper, a small process in a session of its own, starts it, waits for it, and writes the code down. It also
sees what the node cannot know: when another one has failed for good, a run would wait for it in vain.

On another machine: `python -m launch.submit.node_process start|state|ask|end LOGS NODE …` over ssh, which
prints an object, or a sentence as the last line of its errors. Imports little: every call is a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import ForeframeError, UsageError, why
from data_pipeline.storage import write_whole
from launch.processes import POLL_S, adopt_orphans, descendants, end_descendants, send

if TYPE_CHECKING:
    from launch.submit.base import Job

CODE_ROOT = Path(__file__).resolve().parents[2]
CALLED_OFF_FILE = "called-off"  # in the logs: nothing of this submission may start any more
LEFT_ALONE_S = 60.0  # after another node has failed, this one may end by itself for so long
LOOK_S = 1.0  # at how other nodes have ended
LEFTOVERS_S = 5.0
END_S = 10.0  # after two Ctrl-C, before SIGKILL


@dataclass(frozen=True)
class NodeProcess:
    """A process by its number and its start, on the machine that is named `host`."""

    host: str
    pid: int
    start_time: int


@dataclass(frozen=True)
class NodeState:
    """exit_code: once it has ended; None also when nobody could write it down."""

    is_alive: bool
    exit_code: int | None


def pid_file(logs: Path, node: int) -> Path:
    return logs / f"node-{node}.pid"


def exit_file(logs: Path, node: int) -> Path:
    return logs / f"node-{node}.exit"


def log_file(logs: Path, node: int) -> Path:
    return logs / f"node-{node}.log"


def read_nodes(logs: Path) -> dict[int, NodeProcess]:
    """The processes that were started, by node."""
    found = {}
    for path in logs.glob("node-*.pid"):
        number = path.stem.removeprefix("node-")
        process = read_node(logs, int(number)) if number.isdigit() else None
        if process is not None:
            found[int(number)] = process
    return dict(sorted(found.items()))


def read_node(logs: Path, node: int) -> NodeProcess | None:
    """None when it was not started, or its file says nothing."""
    try:
        host, pid, start_time = pid_file(logs, node).read_text().split()
        return NodeProcess(host, int(pid), int(start_time))
    except (OSError, ValueError):
        return None


def exit_code(logs: Path, node: int) -> int | None:
    try:
        return int(exit_file(logs, node).read_text())
    except (OSError, ValueError):
        return None


def start_time_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when it is gone or dead, or without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(process: NodeProcess) -> bool:
    """Of this machine, and of no other process that has its number now."""
    return start_time_of(process.pid) == process.start_time


def start(
    logs: Path,
    node: int,
    command: Sequence[str],
    host: str,
    environment: Mapping[str, str] | None = None,
    *,
    needs_all: bool = True,
) -> NodeProcess:
    """Start a command in a session of its own, with its output in the log; once it runs.

    environment: laid over this process's. needs_all: it is asked to stop when any other node has failed;
    else, when the first has. Raises: UsageError when it cannot be started or was called off.
    """
    if is_called_off(logs):
        raise UsageError(f"{logs.parent} was called off: submit it again")
    needs = [] if needs_all else ["--needs-first"]
    given = [*needs, "keep", str(logs), str(node), host, *command]
    words = [sys.executable, "-m", "launch.submit.node_process", *given]
    path = os.pathsep.join([str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        with log_file(logs, node).open("ab") as log:
            keeper = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            )
    except OSError as error:
        raise UsageError(f"{log_file(logs, node)} cannot be written: {why(error)}") from error
    with keeper:  # closes the pipe; and waits, which is for a keeper that has failed
        assert keeper.stdout is not None
        told = keeper.stdout.readline()
        process = read_node(logs, node)
        if told and process is not None:
            keeper.returncode = 0  # it stays, and this process does not wait for it
            return process
    raise UsageError(f"node {node} could not be started: see {log_file(logs, node)}")


def state(logs: Path, node: int) -> NodeState:
    process = read_node(logs, node)
    alive = process is not None and is_alive(process)
    return NodeState(alive, exit_code(logs, node))


def ask(logs: Path, node: int) -> bool:
    """Ask for a save and an end, by SIGTERM, which training and sharding both heed; False when it is gone."""
    process = read_node(logs, node)
    if process is None or not is_alive(process):
        return False
    send(process.pid, signal.SIGTERM)
    return True


def end(logs: Path, node: int, grace_s: float = END_S) -> bool:
    """End it without a save, with all that it started: two Ctrl-C, and what is left then gets SIGKILL.

    False when it was gone already.
    """
    process = read_node(logs, node)
    if process is None or not is_alive(process):
        return False
    for _ in range(2):
        send(process.pid, signal.SIGINT)
        time.sleep(2 * POLL_S)
    if not wait(process, grace_s):
        left = descendants(process.pid)
        for pid in [process.pid, *(facts.pid for facts in left)]:
            send(pid, signal.SIGKILL)
        wait(process, LEFTOVERS_S)
    return True


def wait(process: NodeProcess, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Until it has ended; False when the time is over before."""
    deadline_s = clock() + timeout_s
    while is_alive(process):
        if clock() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def keep(logs: Path, node: int, host: str, command: Sequence[str], *, needs_all: bool = True) -> int:
    """Start the command, tell so in a line, and wait for its end: the keeper. Returns the exit code."""
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # it ends with the node; ignored, they would be inherited
    with log_file(logs, node).open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        began = start_time_of(child.pid) or 0
        write_whole(pid_file(logs, node), f"{host} {child.pid} {began}\n".encode())
    except OSError as error:
        child.kill()
        end_descendants(0.0)
        raise UsageError(f"{pid_file(logs, node)} cannot be written: {why(error)}") from error
    if is_called_off(logs):  # looked for after its own word is there: one of both sides sees the other's
        send(child.pid, signal.SIGKILL)
    print(child.pid, flush=True)
    os.close(sys.stdout.fileno())
    _wait_for(child, logs, node, needs_all=needs_all)
    end_descendants(LEFTOVERS_S)
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode  # as a shell says it
    write_whole(exit_file(logs, node), f"{code}\n".encode())
    return code


def _wait_for(child: subprocess.Popen[bytes], logs: Path, node: int, *, needs_all: bool) -> None:
    """The child's end; it is asked to stop when a node that it needs has failed for good and it stays."""
    failed_s: float | None = None
    was_asked = False
    while True:
        try:
            child.wait(LOOK_S)
            return
        except subprocess.TimeoutExpired:
            pass
        if failed_s is None and _has_failed(logs, node, needs_all=needs_all):
            failed_s = time.monotonic()
        if failed_s is not None and not was_asked and time.monotonic() - failed_s > LEFT_ALONE_S:
            was_asked = True
            print(
                f"  node {node}: another node has failed, this one is asked to stop",
                file=sys.stderr,
                flush=True,
            )
            send(child.pid, signal.SIGTERM)


def _has_failed(logs: Path, node: int, *, needs_all: bool) -> bool:
    ended = (path.stem.removeprefix("node-") for path in logs.glob("node-*.exit"))
    others = [int(other) for other in ended if other.isdigit() and int(other) != node]
    return any(exit_code(logs, other) for other in others if needs_all or other == 0)


def call_off(logs: Path) -> None:
    """Nodes that have not begun yet will not. Raises: OSError."""
    (logs / CALLED_OFF_FILE).touch()


def is_called_off(logs: Path) -> bool:
    return (logs / CALLED_OFF_FILE).exists()


def _need_code(digest: str) -> None:
    """Whether this code, as this machine sees it, is what was submitted. Raises: UsageError."""
    from launch.submit.freeze import code_digest

    if code_digest(CODE_ROOT) != digest:
        raise UsageError(
            f"{CODE_ROOT} holds other code there than what was submitted; need one shared folder"
        )


def told_of(job: Job) -> tuple[tuple[str, str], ...]:
    """What to type from the start of such a job on: (label, command)."""
    run, log = shlex.quote(str(job.run)), shlex.quote(str(log_file(job.logs, 0)))
    return (
        ("watch", f"foreframe status {run} --watch"),
        ("log", f"tail -f {log}"),
        ("stop", f"foreframe stop {run}"),
    )


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.submit.node_process")
    parser.add_argument("--needs-first", action="store_true", help="and no other node")
    parser.add_argument("--code", help="digest of the code that must be there")
    parser.add_argument("verb", choices=("start", "keep", "state", "ask", "end"))
    parser.add_argument("logs", type=Path)
    parser.add_argument("node", type=int)
    parser.add_argument("host", nargs="?", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    if given.verb == "keep":
        return keep(given.logs, given.node, given.host, given.command, needs_all=not given.needs_first)
    if given.verb == "start":
        if given.code:
            _need_code(given.code)
        start(given.logs, given.node, given.command, given.host, needs_all=not given.needs_first)
    elif given.verb == "ask":
        ask(given.logs, given.node)
    elif given.verb == "end":
        end(given.logs, given.node)
    print(json.dumps(asdict(state(given.logs, given.node))))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_main(sys.argv[1:]))
    except ForeframeError as error:
        sys.exit(str(error))
