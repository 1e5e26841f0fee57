"""Hosts of a hostfile as a place: its settings, and the script that each of them runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from data_pipeline.errors import UsageError
from launch.submit.base import Job, Place, Started
from launch.submit.hostfile import Slots, read_hostfile, take
from launch.submit.shell import DUMPS, command, gpu_variables, interpreter, preamble

SCRIPT = "node.sh"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class SshPlace(Place):
    """Hosts that `ssh` reaches without a question, and that share the folders of the job."""

    kind: Literal["ssh"] = "ssh"
    hostfile: Path | None = Field(
        None, description="DeepSpeed's hostfile, `NAME slots=N` a line; a slot is a rank, and a GPU."
    )
    hosts: tuple[str, ...] = Field(
        (), description="Instead of a hostfile: names as ssh knows them, the first of them node 0."
    )
    include: str = Field("", description="Slots to use, as DeepSpeed: NAME@NAME:0,2; the others are not.")
    exclude: str = Field("", description="Slots not to use, in the same form.")
    ssh_config: Path | None = Field(None, description="Settings of ssh (`ssh -F`); null: those of the user.")
    address: str | None = Field(
        None,
        min_length=1,
        description="The first host's, at which the others reach it; null: the one at which ssh reaches it.",
    )
    port: int | None = Field(
        None, ge=1, lt=1 << 16, description="Where the hosts meet; null: one that is free on the first host."
    )
    interface: str | None = Field(
        None,
        min_length=1,
        description="Of the network between hosts; null: the one by which each reaches the first host.",
    )
    _taken: Slots = PrivateAttr(default_factory=dict)
    _pool: dict[str, int] = PrivateAttr(default_factory=dict)
    _num_hosts: int = PrivateAttr(0)

    @field_validator("hostfile", "ssh_config")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()  # read again by `foreframe stop`

    @field_validator("hosts")
    @classmethod
    def _are_named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must name each host once: more ranks on one are ranks_per_node")
        return value

    @model_validator(mode="after")
    def _nodes_are_the_hosts(self) -> SshPlace:
        """Raises: UsageError for a hostfile that cannot be read, or slots that there are not."""
        if (self.hostfile is None) == (not self.hosts):
            return self  # told by problems()
        wanted = self.ranks_per_node or self.gpus_per_node
        if self.hostfile is not None:
            pool = read_hostfile(self.hostfile)
        else:
            pool = dict.fromkeys(self.hosts, wanted or 1)
        taken = list(take(pool, self.include, self.exclude).items())
        self._num_hosts, self._pool = len(taken), pool
        if "nodes" in self.model_fields_set:
            taken = taken[: self.nodes]
        self._taken = {host: slots[:wanted] if wanted else slots for host, slots in taken}
        self.__dict__["nodes"] = max(self.nodes, len(taken))  # others read it; the model is frozen after this
        return self

    def problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Settings that do not fit together: key, what it is, what is needed, what to try."""
        if self.hostfile is None and not self.hosts:
            return [
                (
                    "hostfile",
                    None,
                    "a hostfile, or names of hosts, where the job is to run",
                    ("--with hostfile=FILE", "--with hosts=[NAME,NAME]"),
                )
            ]
        if self.hostfile is not None and self.hosts:
            return [("hosts", list(self.hosts), "one of hosts and hostfile", ())]
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        if self.nodes > self._num_hosts:
            found.append(
                ("nodes", self.nodes, f"at most {self._num_hosts}, the hosts there are", (self._num_hosts,))
            )
        wanted = self.ranks_per_node or self.gpus_per_node
        host, fewest = min(self.num_slots.items(), key=lambda each: each[1])
        if wanted > fewest:
            key = "ranks_per_node" if self.ranks_per_node else "gpus_per_node"
            found.append((key, wanted, f"at most {fewest}, the slots of {host} that are taken", (fewest,)))
        return found

    @property
    def ranks(self) -> int:
        """Of each host. Raises: UsageError where they differ."""
        counts = {host: len(slots) for host, slots in self._taken.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{host} has {count}" for host, count in counts.items())
            raise UsageError(
                f"hosts must have as many ranks each, and {told}: set ranks_per_node={min(counts.values())}, "
                "or leave slots out with include or exclude"
            )
        return next(iter(counts.values()), 1)

    @property
    def names(self) -> list[str]:
        """The hosts, in the order of nodes."""
        return list(self._taken)

    def gpus_needed(self, host: str) -> int:
        """GPUs that a host must have, for the highest slot that is taken."""
        return max(self._taken[host]) + 1

    @property
    def num_slots(self) -> dict[str, int]:
        return {host: len(slots) for host, slots in self._taken.items()}

    def files(self, job: Job) -> dict[str, str]:
        if job.elements:
            raise UsageError(
                "a sweep runs on this machine or as an array of Slurm: hosts over ssh have no queue"
            )
        return {SCRIPT: "\n".join(part for part in self._parts(job) if part)}

    def _parts(self, job: Job) -> list[str]:
        several = self.nodes > 1
        doing = "trains" if job.kind == "train" else "shards"
        on = f"{self.nodes} hosts" if several else self.names[0]
        meet = "the first host's address and a port that is free there"
        how = f"# Each runs {SCRIPT} NODE HOST:PORT, with {meet}.\n" if several else ""
        table = "".join(
            f"#   node {node}  {self._told(host) if job.kind == 'train' else host}\n"
            for node, host in enumerate(self.names)
        )
        given = "node=$1 rendezvous=$2\n" if several else ""
        words = [interpreter(self), "-m", "launch"]
        words += job.arguments(self, node_rank='"$node"', rendezvous='"$rendezvous"')
        return [
            f"#!/bin/sh\n# {job.name}: {doing} on {on}.\n{how}{table if several else ''}set -eu\n{given}",
            f"{preamble(job, self)}export PYTHONUNBUFFERED=1  # the log has each line as it is printed\n",
            self._devices() if job.kind == "train" else "",
            gpu_variables(f"{shlex.quote(str(job.logs))}/{DUMPS}") if job.kind == "train" else "",
            self._network() if several else "",
            f"exec {command(words)}\n",
        ]

    def _are_all(self, host: str) -> bool:
        return len(self._taken[host]) == self._pool[host]

    def _devices(self) -> str:
        """Which GPUs a host's ranks see, where not all of them are taken."""
        nodes: dict[str, list[int]] = {}
        for node, (host, slots) in enumerate(self._taken.items()):
            if not self._are_all(host):
                nodes.setdefault(",".join(map(str, slots)), []).append(node)
        if not nodes or "CUDA_VISIBLE_DEVICES" in self.env:
            return ""
        why = "# The slots that were taken, where they are not all of a host's.\n"
        if [len(each) for each in nodes.values()] == [self.nodes]:
            return f"{why}export CUDA_VISIBLE_DEVICES={next(iter(nodes))}\n"
        rows = [
            f"  {'|'.join(map(str, each))}) export CUDA_VISIBLE_DEVICES={devices} ;;\n"
            for devices, each in nodes.items()
        ]
        return f"{why}case $node in\n{''.join(rows)}esac\n"

    def _network(self) -> str:
        names = [name for name in INTERFACES if name not in self.env]
        if not names:
            return ""
        if self.interface is not None:
            return "".join(f"export {name}={shlex.quote(self.interface)}\n" for name in names)
        find = f'{shlex.quote(interpreter(self))} -m launch.submit.ssh.probe interface "${{rendezvous%:*}}"'
        exports = "".join(f"  export {name}=$interface\n" for name in names)
        return (
            "# The interface by which the first host is reached: gloo and NCCL might take another.\n"
            f"interface=$({find})\n"
            f'if [ -n "$interface" ]; then\n{exports}fi\n'
        )

    def _told(self, host: str) -> str:
        slots = self._taken[host]
        many = f"{len(slots)} ranks" if len(slots) > 1 else "1 rank"
        return f"{host}, {many}" + ("" if self._are_all(host) else f" (slots {', '.join(map(str, slots))})")

    def check(self, job: Job) -> None:
        from launch.submit.ssh.check import check_hosts

        check_hosts(self, job)

    def start(self, job: Job, *, detach: bool) -> Started:
        from launch.submit.node_process import told_of
        from launch.submit.ssh.follow import follow
        from launch.submit.ssh.start import start_nodes

        start_nodes(self, job)
        return Started(None, told_of(job)) if detach else follow(self, job)
