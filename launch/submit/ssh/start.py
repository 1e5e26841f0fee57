"""All hosts of a job are started, or none is left running."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_pipeline.errors import UsageError
from launch.remote import Ran
from launch.submit.base import Job
from launch.submit.freeze import read_record
from launch.submit.node_process import call_off
from launch.submit.shell import interpreter
from launch.submit.ssh.check import find_meeting
from launch.submit.ssh.nodes import Nodes
from launch.submit.ssh.place import SCRIPT, SshPlace

START_S = 90.0  # Python, and a digest of all code, from a cold network's folder


def nodes_of(place: SshPlace, job: Job) -> Nodes:
    return Nodes(job.folder, dict(enumerate(place.names)), interpreter(place), place.ssh_config)


def start_nodes(place: SshPlace, job: Job) -> None:
    """Start each host's process, which then needs neither this machine nor a connection.

    Raises: UsageError when one could not be started, with those that were ended again.
    """
    given = ["--code", str(read_record(job.folder)["code"])]
    given += ["--needs-first"] * (job.kind == "shard")  # which goes on without a node that is lost
    meeting = [str(find_meeting(place))] if place.nodes > 1 else []
    nodes = nodes_of(place, job)
    commands = {}
    for node, host in nodes.hosts.items():
        run = ["/bin/sh", str(job.folder / SCRIPT), *([str(node), *meeting] if meeting else [])]
        commands[node] = nodes.command("start", node, [host, *run], given)
    try:
        ran = nodes.run(commands, START_S)
        failed = [_told(found) for found in ran.values() if not found.is_done]
    except BaseException:  # a Ctrl-C: some may run already, and nobody would know of them
        for left in end_again(nodes):
            print(f"  ssh       {left}", file=sys.stderr, flush=True)
        raise
    if failed:
        may_run = [node for node, found in ran.items() if found.is_done or found.exit_code is None]
        listed = "".join(f"\n  {told}" for told in [*failed, *end_again(nodes, may_run)])
        raise UsageError(f"not all of {place.nodes} hosts could be started, and what was is ended:{listed}")


def _told(ran: Ran) -> str:
    return ran.problem or f"{ran.host}: {ran.last_line or f'it ended with exit code {ran.exit_code}'}"


def end_again(nodes: Nodes, only: Sequence[int] | None = None) -> list[str]:
    """End what was started, and what is still about to start. Returns what may be left, in sentences."""
    call_off(nodes.logs)
    return [
        f"{answer.host}: whether it runs there is not known; `foreframe stop --now {nodes.folder}` ends it"
        for answer in nodes.ask("end", only).values()
        if answer.state is None or answer.state.is_alive
    ]
