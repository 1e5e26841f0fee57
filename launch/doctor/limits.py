"""What this machine lets a process have: cores, memory, shared memory, open files, processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from launch.doctor.check import Check
from launch.figures import in_bytes

SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED = 1 << 30  # Docker gives 64 MiB, which no loader's workers fit into
LEAST_FILES, ENOUGH_FILES = 1024, 4096
ENOUGH_PROCESSES = 1024
CGROUP = Path("/sys/fs/cgroup")


def read_text(path: Path) -> str | None:
    """A file's text without the last newline; None where there is no such file or it may not be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


def own_cgroup(root: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Folders of this process's cgroups (version 2) from its own to the root's; empty without them."""
    lines = (read_text(own) or "").splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not (root / "cgroup.controllers").exists():
        return []
    folder = root / path.lstrip("/")
    above = [folder, *folder.parents]
    return [each for each in above if each == root or root in each.parents]


def cgroup_value(name: str, folders: list[Path]) -> int | None:
    """The smallest limit `name` (such as memory.max) on the way to the root; None without one."""
    told = [read_text(folder / name) for folder in folders]
    numbers = [int(text) for text in told if text is not None and text.isdigit()]
    return min(numbers, default=None)


def cgroup_cores(folders: list[Path]) -> float | None:
    """Cores that a cgroup's quota comes to; None without a quota."""
    quotas = []
    for folder in folders:
        words = (read_text(folder / "cpu.max") or "").split()
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def check_cores(
    processes: int | None, *, total: int | None = None, usable: int | None = None, quota: float | None = None
) -> Check:
    """Cores of the machine, those this process may use, and the quota of its container.

    processes: ranks and loader workers that a config starts here, or None.
    """
    total = total or os.cpu_count() or 1
    usable = usable or len(os.sched_getaffinity(0))
    found = f"{usable} cores" if usable == total else f"{usable} of {total} cores (affinity)"
    if quota is not None and quota < usable:
        remedy = f"give the container {usable} CPUs, or start it with --cpuset-cpus, so that threads fit"
        return Check("cores", "warn", f"{found}, of which the container may use {quota:g}", remedy)
    if processes is not None and processes > usable:
        needed = f"{found} for {processes} processes: ranks, and their data.workers"
        remedy = "lower data.workers or --nproc, or see that the scheduler binds the job to more cores"
        return Check("cores", "warn", needed, remedy)
    return Check("cores", "pass", found)


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name, from /proc/meminfo."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def check_memory(info: dict[str, int], limit: int | None, used: int | None) -> list[Check]:
    """Memory, what of it is free, and swap. limit, used: of the cgroup, None without."""
    if "MemTotal" not in info:
        return [Check("memory", "skipped", "this system does not tell (/proc/meminfo)")]
    total, free = info["MemTotal"], info.get("MemAvailable", info.get("MemFree", 0))
    found = f"{in_bytes(free)} of {in_bytes(total)} available"
    if limit is not None and limit < total:
        free = min(free, max(0, limit - (used or 0)))
        found += f"; the container may have {in_bytes(limit)} and has {in_bytes(limit - (used or 0))} left"
        total = limit
    few = "end what else runs here, or ask the scheduler for more: past the limit the kernel kills ranks"
    checks = [Check("memory", "pass", found) if free > total / 10 else Check("memory", "warn", found, few)]
    swap = info.get("SwapTotal", 0)
    used_swap = swap - info.get("SwapFree", 0)
    if not swap:
        checks.append(Check("swap", "pass", "none"))
    elif used_swap > max(swap / 2, 1 << 30):
        remedy = "training stalls while memory is swapped: find what holds it (`ps aux --sort -rss | head`)"
        checks.append(Check("swap", "warn", f"{in_bytes(used_swap)} of {in_bytes(swap)} in use", remedy))
    else:
        checks.append(Check("swap", "pass", f"{in_bytes(used_swap)} of {in_bytes(swap)} in use"))
    return checks


def check_shared_memory(
    needed: int | None, stat: Callable[[str], os.statvfs_result] = os.statvfs, folder: Path = SHARED_MEMORY
) -> Check:
    """Room in /dev/shm, which loader workers and NCCL share batches through. needed: bytes, by a config."""
    bigger = "give the container more: docker --shm-size=16g, --ipc=host, or an emptyDir of medium Memory"
    try:
        told = stat(str(folder))
    except OSError:
        return Check("shared memory", "warn", f"no {folder} here", "mount it, or set data.workers=0")
    free, total = told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize
    found = f"{in_bytes(free)} of {in_bytes(total)} free in {folder}"
    if needed is not None:
        found += f", {in_bytes(needed)} needed by the ranks' loaders"
        if free < needed:
            return Check("shared memory", "fail", found, f"lower data.workers or data.prefetch, or {bigger}")
    if free < LEAST_SHARED:
        return Check("shared memory", "warn", found, bigger)
    return Check("shared memory", "pass", found)


def check_open_files() -> Check:
    """The limit of open files, as this process has it."""
    soft, hard = (_count(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    found = f"at most {_words(soft)}" + ("" if soft == hard else f", may be raised to {_words(hard)}")
    raised = "`ulimit -n 65536` before the start; LimitNOFILE in a service, --ulimit nofile in Docker"
    if soft < LEAST_FILES:
        return Check("open files", "fail", found, f"shards, workers and sockets need more: {raised}")
    if soft < ENOUGH_FILES:
        return Check("open files", "warn", found, f"Ray and stores with many shards need more: {raised}")
    return Check("open files", "pass", found)


def check_processes(folders: list[Path]) -> Check:
    """How many processes and threads this user, or this container, may have."""
    soft = _count(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    capped, current = cgroup_value("pids.max", folders), None
    if capped is not None and folders:
        current = int(read_text(folders[0] / "pids.current") or 0)
    found = f"at most {_words(soft)}"
    left = soft
    if capped is not None:
        found += f"; the container has {current} of {capped}"
        left = min(left, capped - (current or 0))
    if left < ENOUGH_PROCESSES:
        remedy = "`ulimit -u 65536`, or a larger --pids-limit: threads count too, and Ray starts hundreds"
        return Check("processes", "warn", found, remedy)
    return Check("processes", "pass", found)


def check_overcommit(mode: str | None) -> Check:
    """vm.overcommit_memory: 2 refuses what CUDA and forks reserve and never touch."""
    if mode is None:
        return Check("overcommit", "skipped", "this system does not tell")
    if mode == "2":
        remedy = "`sysctl vm.overcommit_memory=0`: CUDA reserves far more addresses than it uses"
        return Check("overcommit", "warn", "vm.overcommit_memory is 2: never", remedy)
    return Check("overcommit", "pass", {"0": "by the kernel's guess", "1": "always"}.get(mode, mode))


def _count(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _words(limit: float) -> str:
    return "any number" if limit == float("inf") else f"{limit:,.0f}"
