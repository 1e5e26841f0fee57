"""The node processes of a job that runs on hosts: what is asked of all at once, and what they answer."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.remote import Connections, Ran, run_on
from launch.submit.base import CODE_FOLDER, LOGS_FOLDER
from launch.submit.node_process import END_S, LEFTOVERS_S, NodeState, read_nodes

ASK_S = 45.0  # Python starts slowly from a cold network's folder


@dataclass(frozen=True)
class Nodes:
    """Hosts by node, and how they are reached. folder: the submission's, which all of them see."""

    folder: Path
    hosts: Mapping[int, str]
    python: str
    ssh_config: Path | None

    @classmethod
    def started(cls, folder: Path, record: Mapping[str, Any]) -> Nodes:
        """Those that were started, as they have left word. record: submission.json."""
        hosts = {node: process.host for node, process in read_nodes(folder / LOGS_FOLDER).items()}
        place = record["place"]
        # of the nodes, not of this machine, which may have another installation
        python = record.get("interpreter") or place.get("python") or sys.executable
        settings = place.get("ssh_config")
        return cls(folder, hosts, python, Path(settings) if settings else None)

    @property
    def logs(self) -> Path:
        return self.folder / LOGS_FOLDER

    def command(self, verb: str, node: int, words: Sequence[str] = (), options: Sequence[str] = ()) -> str:
        """What a host's shell runs to have something done with its node's process."""
        code = shlex.quote(str(self.folder / CODE_FOLDER))
        given = [*options, verb, str(self.logs), str(node), *words]
        return (
            f"export PYTHONPATH={code} PYTHONSAFEPATH=1; "
            f"exec {shlex.join([self.python, '-m', 'launch.submit.node_process', *given])}"
        )

    def run(
        self, commands: Mapping[int, str], timeout_s: float, connections: Connections | None = None
    ) -> dict[int, Ran]:
        """A command by node, on all of their hosts at once. connections: by which they can be cut off."""
        by_host = {self.hosts[node]: command for node, command in commands.items()}
        ran = run_on(
            list(by_host),
            by_host,
            timeout_s=timeout_s,
            ssh_config=self.ssh_config,
            connections=connections,
        )
        return {node: ran[self.hosts[node]] for node in commands}

    def ask(
        self, verb: str, only: Sequence[int] | None = None, connections: Connections | None = None
    ) -> dict[int, Answer]:
        """state: how they are; ask: to save and stop; end: without a save. What each then says of itself."""
        wanted = list(self.hosts if only is None else only)
        limit_s = ASK_S + (END_S + LEFTOVERS_S if verb == "end" else 0.0)
        ran = self.run({node: self.command(verb, node) for node in wanted}, limit_s, connections)
        return {node: _answer(self.hosts[node], found) for node, found in ran.items()}


@dataclass(frozen=True)
class Answer:
    """How a node is; or, in a sentence with its host's name, why that is not known."""

    host: str
    state: NodeState | None
    problem: str | None = None


def _answer(host: str, ran: Ran) -> Answer:
    if ran.problem is not None:
        return Answer(host, None, ran.problem)
    try:
        plain = json.loads(ran.out.splitlines()[-1])
        return Answer(host, NodeState(bool(plain["is_alive"]), plain["exit_code"]))
    except (ValueError, IndexError, KeyError, TypeError):
        return Answer(host, None, f"{host}: {ran.last_line or 'nothing was said'}")
