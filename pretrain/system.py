"""What a rank takes of its machine: memory of the GPU and of the host, cores, room on the disk.

Read where the system keeps it anyway, in well under a millisecond; nothing is sampled in between.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil
import torch

from pretrain import pulse


@dataclass(frozen=True)
class Use:
    """Of one rank, since it was asked last; bytes, and cores as CPU seconds a second.

    gpu_memory: most that torch had allocated. gpu_reserved: most that it held of the device. gpu_share: of
    the device's memory that is taken now, by whomever. host_memory: of the rank. loader_memory: of its
    loader's workers, without what they share. host_available: of the machine. cores: of the rank and its
    workers. machine_share: of the machine's cores that are busy, with whatever. Zeros of a GPU where there is
    none.
    """

    gpu_memory: float
    gpu_reserved: float
    gpu_share: float
    host_memory: float
    loader_memory: float
    host_available: float
    cores: float
    machine_share: float


NUM_FIGURES = len(fields(Use))


def own_workers() -> list[int]:
    """Pids of this rank's loader workers, as far as they beat in its pulse (`pretrain.pulse`)."""
    path = pulse.file()
    if path is None:
        return []
    try:
        return [each.pid for each in pulse.read(path) if each.pid != os.getpid()]
    except OSError:
        return []


class System:
    """Reads the use of this process; cores and GPU memory count from the last reading, or the start."""

    def __init__(
        self,
        device: torch.device,
        workers: Callable[[], Sequence[int]] = own_workers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._workers, self._clock = device, workers, clock
        self._process = psutil.Process()
        self._known: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._at_s = clock()
        self._machine = _machine_s()
        self._cpu_s[self._process.pid] = _cpu_s(self._process)

    def read(self) -> Use:
        now_s = self._clock()
        elapsed_s, self._at_s = max(1e-9, now_s - self._at_s), now_s
        spent_s = self._spent_s(self._process)
        loader_memory = 0
        for worker in self._living():
            with suppress(psutil.Error):  # it ended while we looked
                spent_s += self._spent_s(worker)
                memory = worker.memory_info()
                loader_memory += max(0, memory.rss - getattr(memory, "shared", 0))
        busy_s, all_s = _machine_s()
        before, self._machine = self._machine, (busy_s, all_s)
        machine_s = all_s - before[1]
        allocated, reserved, share = self._gpu()
        return Use(
            gpu_memory=allocated,
            gpu_reserved=reserved,
            gpu_share=share,
            host_memory=float(self._process.memory_info().rss),
            loader_memory=float(loader_memory),
            host_available=float(psutil.virtual_memory().available),
            cores=spent_s / elapsed_s,
            machine_share=min(1.0, (busy_s - before[0]) / machine_s) if machine_s > 0 else 0.0,
        )

    def _living(self) -> list[psutil.Process]:
        pids = self._workers()
        for pid in set(self._known) - set(pids):
            del self._known[pid]
        for pid in pids:
            if pid not in self._known:
                with suppress(psutil.Error):
                    self._known[pid] = psutil.Process(pid)
        return list(self._known.values())

    def _spent_s(self, process: psutil.Process) -> float:
        """CPU seconds since the last reading; of a process that is new, since its start."""
        now_s = _cpu_s(process)
        before_s, self._cpu_s[process.pid] = self._cpu_s.get(process.pid, 0.0), now_s
        return max(0.0, now_s - before_s)

    def _gpu(self) -> tuple[float, float, float]:
        if self._device.type != "cuda":
            return 0.0, 0.0, 0.0
        allocated = torch.cuda.max_memory_allocated(self._device)
        reserved = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return float(allocated), float(reserved), 1.0 - free / total


def over_ranks(each: Sequence[Sequence[float]], *, has_gpu: bool) -> dict[str, float]:
    """The metrics of all ranks' figures: of memory the rank that is worst off, of cores the mean."""
    found = [Use(*row) for row in each]
    values = {
        "system/host_memory_bytes": max(use.host_memory for use in found),
        "system/loader_memory_bytes": max(use.loader_memory for use in found),
        "system/host_available_bytes": min(use.host_available for use in found),
        "system/cpu_cores": sum(use.cores for use in found) / len(found),
        "system/cpu_share": sum(use.machine_share for use in found) / len(found),
    }
    if has_gpu:
        values |= {
            "system/gpu_memory_bytes": max(use.gpu_memory for use in found),
            "system/gpu_reserved_bytes": max(use.gpu_reserved for use in found),
            "system/gpu_memory_share": max(use.gpu_share for use in found),
        }
    return values


def disk_free(folder: Path) -> dict[str, float]:
    """Bytes that may still be written where a folder lies; nothing where it cannot be told."""
    try:
        return {"system/disk_free_bytes": float(shutil.disk_usage(folder).free)}
    except OSError:
        return {}


def figures(use: Use) -> tuple[float, ...]:
    return astuple(use)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _machine_s() -> tuple[float, float]:
    """Seconds of the machine's cores since it was started: busy, and all."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts guests in user and nice already
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return float(total - idle), float(total)
