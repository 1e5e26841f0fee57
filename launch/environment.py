"""What a run was computed with: every installed package, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def installed() -> str:
    """`name==version` of every installed package, a line each, sorted, as a constraints file takes them.

    Names and versions alone: where a package was installed from may hold a password.
    """
    found = {(each.metadata["Name"] or "").lower(): each.version for each in distributions()}
    return "".join(f"{name}=={number}\n" for name, number in sorted(found.items()) if name)


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs of this machine, with the versions of what drives them."""
    import torch

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": _memory_bytes(),
    }
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        found["gpus"] = [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus]
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = _driver()
    return found


def processor() -> str:
    """The processor's name, as the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def described_cpu() -> str:
    """As results name what they were measured on."""
    return f"CPU: {processor()}, {len(os.sched_getaffinity(0))} cores"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _driver() -> str | None:
    """NVIDIA's, as the kernel module says it."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[0].isdigit() and "." in word), None)
