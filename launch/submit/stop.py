"""Stops a job that was submitted, wherever it runs: asked to save and end, or ended at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.errors import LostPeerError, UsageError
from launch.lock import SUBMISSIONS_FOLDER
from launch.paths import is_file
from launch.submit.base import LOGS_FOLDER
from launch.submit.freeze import Submission, find_submission, submissions
from launch.submit.native import stop_natively
from launch.submit.node_process import NodeState, ask, end, exit_code, read_nodes, state
from launch.submit.ssh.nodes import Answer, Nodes
from launch.submitted import HANDED_OVER, RECORD_FILE, end_of, place_kind

POLL_S = 1.0
Say = Callable[[str], None]


def stop(path: Path, say: Say, *, now: bool = False, waits: bool = False) -> None:
    """Stop a run's last submission, or a submission. now: without a save. waits: until all has ended.

    Raises: UsageError when there is none, or it cannot be stopped from here; LostPeerError when a host of it
    was not reached.
    """
    found = newest_handed_over(path)
    kind = place_kind(found.record)
    if kind not in ("local", "ssh"):
        stop_natively(found, say, now=now, waits=waits)
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
        return "has ended, and left no exit code"
    return f"has ended with exit code {code}"


def newest_handed_over(path: Path) -> Submission:
    """A submission by its folder; of a run the newest that was started and may run. Raises: UsageError."""
    if is_file(path / RECORD_FILE):
        return find_submission(path)
    handed_over = [found for found in submissions(path) if found.record.get("state") in HANDED_OVER]
    if handed_over:  # a later one may have been refused because this one runs
        return next(
            (found for found in handed_over if end_of(found.folder, found.record) is None), handed_over[0]
        )
    raise UsageError(f"none of {path / SUBMISSIONS_FOLDER} was started: there is nothing to stop")


def _ask_here(found: Submission, verb: str) -> dict[int, Answer]:
    logs, here = found.folder.absolute() / LOGS_FOLDER, socket.gethostname()
    processes = read_nodes(logs)
    if not processes:
        raise UsageError(
            f"{found.folder} left no word of its process: Ctrl-C in its terminal stops it, if it still runs"
        )
    for process in processes.values():
        if process.host != here:
            raise UsageError(f"{found.folder} runs on {process.host}, and this is {here}: stop it there")
    answers = {}
    for node in processes:
        was_asked = verb == "ask" and ask(logs, node)  # and may have ended by now, which a later look tells
        if verb == "end":
            end(logs, node)
        answers[node] = Answer(here, NodeState(True, None) if was_asked else state(logs, node))
    return answers


def _ask_hosts(found: Submission, verb: str) -> dict[int, Answer]:
    nodes = Nodes.started(found.folder.absolute(), found.record)
    if not nodes.hosts:
        raise UsageError(f"{found.folder} was started on no host yet, or its logs are gone")
    left = [node for node in nodes.hosts if exit_code(nodes.logs, node) is None]
    answers = {
        node: Answer(host, state(nodes.logs, node)) for node, host in nodes.hosts.items() if node not in left
    }
    return dict(sorted({**answers, **nodes.ask(verb, left)}.items()))
