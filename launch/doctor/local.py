"""All checks of this machine, in the order in which they are told."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from launch.doctor.check import Check, Found, Group, Report, Task, make
from launch.doctor.disk import look_at_disk
from launch.doctor.gpus import look_at_gpus
from launch.doctor.leftovers import look_at_leftovers
from launch.doctor.limits import (
    cgroup_cores,
    cgroup_value,
    check_cores,
    check_memory,
    check_open_files,
    check_overcommit,
    check_processes,
    check_shared_memory,
    meminfo,
    own_cgroup,
    read_text,
)
from launch.doctor.needs import Needs, addresses_of, needs_of
from launch.doctor.network import (
    check_clock,
    check_ports,
    free_ports,
    is_clock_synchronised,
    look_at_hostname,
)
from launch.doctor.round_trip import run_local
from launch.doctor.versions import check_versions
from pretrain.config import RunConfig

SLOW_S = 120.0  # for what moves bytes, or imports torch from a file system of the network
NUM_FREE_PORTS = 4

Doing = Callable[[str], None]


def examine(
    config: RunConfig | DataConfig | None, *, nproc: int | None, is_quick: bool, doing: Doing = lambda _: None
) -> Report:
    """Look at this machine. doing: told the name of each check before it is made."""
    facts: dict[str, Any] = {"host": socket.gethostname()}
    # What imports torch, and so what a plan of its loaders asks, may hang too, as on a mount that is gone.
    needed: list[Needs] = []
    doing("needs")
    broken = make(Task("needs", lambda: _keep(needed, needs_of(config, nproc)), SLOW_S))
    needs = needed[0] if needed else Needs()
    groups: list[Group] = []
    for name, tasks in _groups(config, needs, nproc, facts, is_quick=is_quick):
        checks: list[Check] = [] if groups or needed else list(broken)
        for task in tasks:
            doing(task.name)
            checks += make(task)
        if checks:
            groups.append(Group(name, tuple(checks)))
    facts |= {"time_s": time.time(), "free_ports": free_ports(NUM_FREE_PORTS)}
    return Report(tuple(groups), facts)


def _keep(found: list[Needs], needs: Needs) -> Found:
    found.append(needs)
    return ()


def _groups(
    config: RunConfig | DataConfig | None,
    needs: Needs,
    nproc: int | None,
    facts: dict[str, Any],
    *,
    is_quick: bool,
) -> Iterator[tuple[str, list[Task]]]:
    def versions() -> list[Check]:
        checks, found = check_versions(needs.kind)
        facts.update(found)
        return checks

    def gpus() -> list[Check]:
        checks, found = look_at_gpus(nproc)
        facts.update(found)
        return checks

    yield "software", [Task("versions", versions)]
    yield "GPUs", [Task("GPUs", gpus, SLOW_S)] if needs.kind != "data" else []
    yield "machine", [Task("machine", lambda: look_at_limits(needs))]
    trips = [Task("gloo here", lambda: run_local("gloo", is_quick=is_quick), SLOW_S)]
    if facts.get("num_gpus", 0) > 1:
        trips.append(Task("nccl here", lambda: run_local("nccl", is_quick=is_quick), SLOW_S))
    yield (
        "network",
        [
            Task("hostname", look_at_hostname),
            Task("ports", check_ports),
            Task("clock", lambda: check_clock(is_clock_synchronised())),
            *(trips if "torch" in facts and needs.kind != "data" else []),
        ],
    )
    disk = [
        Task(
            "disk",
            lambda: look_at_disk(
                str(needs.out), is_quick=is_quick, checkpoint=needs.checkpoint_bytes, kept=needs.kept
            ),
            SLOW_S,
        )
    ]
    addresses = [] if config is None else addresses_of(config, is_quick=is_quick)
    yield (
        "storage",
        [
            *(disk if needs.out is not None else []),
            *(Task(name, look, SLOW_S) for name, look in addresses),
        ],
    )
    yield "leftovers", [Task("leftovers", lambda: look_at_leftovers(Path(tempfile.gettempdir())))]


def look_at_limits(needs: Needs) -> list[Check]:
    """What this machine lets a process have."""
    folders = own_cgroup()
    limit, used = cgroup_value("memory.max", folders), None
    if limit is not None and folders:
        used = int(read_text(folders[0] / "memory.current") or 0)
    return [
        check_cores(needs.processes, quota=cgroup_cores(folders)),
        *check_memory(meminfo(read_text(Path("/proc/meminfo")) or ""), limit, used),
        check_shared_memory(needs.shared_bytes),
        check_open_files(),
        check_processes(folders),
        check_overcommit(read_text(Path("/proc/sys/vm/overcommit_memory"))),
    ]
