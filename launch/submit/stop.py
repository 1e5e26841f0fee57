"""Stops a job that was submitted, wherever it runs: asked to save and end, or ended at once."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import LostPeerError, UsageError
from launch.lock import SUBMISSIONS_FOLDER
from launch.submit.base import LOGS_FOLDER
from launch.submit.freeze import Submission, find_submission
from launch.submit.node_process import ask, end, exit_code, read_nodes, state
from launch.submit.ssh.nodes import Answer, Nodes
from launch.submitted import RECORD_FILE

NATIVE = ("scancel", "kubectl", "ray")  # programs whose command a submission may have left to be run
NATIVE_S = 60.0
POLL_S = 1.0
HANDED_OVER = ("started", "submitted")
Say = Callable[[str], None]


def stop(path: Path, say: Say, *, now: bool = False, waits: bool = False) -> None:
    """Stop a run's last submission, or a submission. now: without a save. waits: until all has ended.

    Raises: UsageError when there is none, or it cannot be stopped from here; LostPeerError when a host of it
    was not reached.
    """
    found = newest_handed_over(path)
    kind = found.record.get("place", {}).get("kind")
    if kind not in ("local", "ssh"):
        _natively(found, say)
        return
    question = _ask_here if kind == "local" else _ask_hosts
    answers = question(found, "end" if now else "ask")
    lost = [answer.problem for answer in answers.values() if answer.problem is not None]
    for node, answer in answers.items():
        if answer.state is not None:
            say(f"node {node} on {answer.host} {_told(answer, now)}")
    while waits and not lost and any(answer.state and answer.state.is_alive for answer in answers.values()):
        time.sleep(POLL_S)
        answers = question(found, "state")
        lost = [answer.problem for answer in answers.values() if answer.problem is not None]
    if lost:
        listed = "".join(f"\n  {problem}" for problem in lost)
        raise LostPeerError(f"not all hosts were reached; the same command asks again:{listed}")
    if waits:
        say("all has ended")


def _told(answer: Answer, now: bool) -> str:
    assert answer.state is not None, "one that was not reached is told otherwise"
    if answer.state.is_alive:
        return "could not be ended" if now else "is asked to save and stop"
    code = answer.state.exit_code
    if code is None:
        return "is gone: it was killed, or the machine started anew"
    return f"has ended with exit code {code}"


def newest_handed_over(path: Path) -> Submission:
    """A submission by its folder; of a run the newest that was started and may run. Raises: UsageError."""
    if (path / RECORD_FILE).is_file():
        return find_submission(path)
    folders = sorted((path / SUBMISSIONS_FOLDER).glob("[0-9]*"), reverse=True) if path.is_dir() else []
    every = [find_submission(folder) for folder in folders]
    handed_over = [found for found in every if found.record.get("state") in HANDED_OVER]
    if handed_over:  # a later one may have been refused because this one runs
        return next((found for found in handed_over if not _has_ended(found)), handed_over[0])
    if folders:
        raise UsageError(f"none of {path / SUBMISSIONS_FOLDER} was started: there is nothing to stop")
    return find_submission(path)  # says what is needed


def _has_ended(found: Submission) -> bool:
    """As far as it is known here: all nodes that were started have left an exit code."""
    logs = found.folder / LOGS_FOLDER
    nodes = read_nodes(logs)
    return bool(nodes) and all(exit_code(logs, node) is not None for node in nodes)


def _ask_here(found: Submission, verb: str) -> dict[int, Answer]:
    logs, here = found.folder.absolute() / LOGS_FOLDER, socket.gethostname()
    processes = read_nodes(logs)
    if not processes:
        raise UsageError(
            f"{found.folder} runs in the terminal in which it was submitted: Ctrl-C there stops it"
        )
    for process in processes.values():
        if process.host != here:
            raise UsageError(f"{found.folder} runs on {process.host}, and this is {here}: stop it there")
    for node in processes:
        if verb == "ask":
            ask(logs, node)
        elif verb == "end":
            end(logs, node)
    return {node: Answer(here, state(logs, node)) for node in processes}


def _ask_hosts(found: Submission, verb: str) -> dict[int, Answer]:
    nodes = Nodes.started(found.folder.absolute(), found.record["place"])
    if not nodes.hosts:
        raise UsageError(f"{found.folder} was started on no host yet, or its logs are gone")
    left = [node for node in nodes.hosts if exit_code(nodes.logs, node) is None]
    answers = {
        node: Answer(host, state(nodes.logs, node)) for node, host in nodes.hosts.items() if node not in left
    }
    return dict(sorted({**answers, **nodes.ask(verb, left)}.items()))


def _natively(found: Submission, say: Say) -> None:
    """By the command of its place, which it has left."""
    told = found.record.get("told", {}).get("stop")
    if not told:
        raise UsageError(
            f"{found.folder / RECORD_FILE} does not say how it is stopped: {found.record.get('state')}"
        )
    words = shlex.split(told)
    if words[0] not in NATIVE:
        raise UsageError(f"{words[0]} is no cluster's program, and is not run: {told}")
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]} is not on PATH here; where it is, this stops the job: {told}")
    say(told)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=NATIVE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"`{told}` failed: {error}") from error
    printed = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise UsageError(f"`{told}` failed: {printed or f'exit code {done.returncode}'}")
    if printed:
        say(printed)
