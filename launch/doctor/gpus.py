"""GPUs as NVIDIA's driver and as torch see them, and who else uses them."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from launch.doctor.check import Check
from launch.figures import in_bytes

ANSWER_S = 20.0  # a driver that hangs is a finding, not a wait
FIELDS = (
    "index",
    "name",
    "memory.total",
    "memory.used",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
)
MIB = 1 << 20
BUSY_BYTES = 1 << 30  # more than a context of the driver's own


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi tells it. ecc_errors: uncorrected since the driver was loaded, None where not counted."""

    index: int
    name: str
    memory_bytes: int
    used_bytes: int
    driver: str
    ecc_errors: int | None


@dataclass(frozen=True)
class Seen:
    """What torch sees. built_for: the CUDA version of the build, None for a CPU build.

    no_xformers: why xformers' kernels do not load, where there is a GPU.
    """

    count: int
    built_for: str | None
    no_xformers: str | None = None


def gpus_in(text: str) -> list[Gpu]:
    """The rows of `nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`."""
    found = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(FIELDS) or not row[0].isdigit():
            continue
        index, name, total, used, driver, ecc = row
        memory, taken = (int(each) * MIB if each.isdigit() else 0 for each in (total, used))
        found.append(Gpu(int(index), name, memory, taken, driver, int(ecc) if ecc.isdigit() else None))
    return found


def jobs_in(text: str) -> list[tuple[int, int]]:
    """(pid, bytes) of `nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits`."""
    rows = (row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if len(row) == 2)
    return [(int(pid), int(used) * MIB if used.isdigit() else 0) for pid, used in rows if pid.isdigit()]


def ask_driver(*query: str) -> tuple[str | None, str]:
    """(what nvidia-smi answers, or None; why not). Without nvidia-smi both are empty."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return None, ""
    try:
        done = subprocess.run(
            [path, *query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"nvidia-smi does not answer within {ANSWER_S:.0f} s"
    except OSError as error:
        return None, f"nvidia-smi cannot be started: {error.strerror}"
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        return None, f"nvidia-smi fails: {said or f'exit code {done.returncode}'}"
    return done.stdout, ""


def seen_by_torch() -> Seen | None:
    """None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return Seen(0, torch.version.cuda)
    from pretrain.model.attention import why_xformers_does_not_load

    return Seen(torch.cuda.device_count(), torch.version.cuda, why_xformers_does_not_load())


def check_gpus(
    gpus: list[Gpu], problem: str, seen: Seen | None, jobs: list[tuple[int, int]], nproc: int | None
) -> list[Check]:
    """Every line about GPUs.

    problem: why the driver could not be asked; jobs: (pid, bytes) of others; nproc: ranks wanted here.
    """
    if problem:
        remedy = "see `dmesg | grep -i nvrm`; a driver that hangs or was updated wants a reboot"
        return [Check("GPUs", "fail", problem, remedy)]
    if not gpus and not (seen and seen.count):
        found = "none: training runs on the CPU (gloo, fp32 or bf16)" if seen is not None else "none"
        return [Check("GPUs", "pass", found), *_fits(nproc, 0)]
    checks = []
    if gpus:
        names = ", ".join(
            f"{_count(gpus, name)} × {name}" for name in dict.fromkeys(gpu.name for gpu in gpus)
        )
        memory = sorted({gpu.memory_bytes for gpu in gpus})
        told = " and ".join(in_bytes(each) for each in memory)
        checks.append(Check("GPUs", "pass", f"{names}, {told} each, driver {gpus[0].driver}"))
    checks += [
        _torch_line(len(gpus), seen),
        *_xformers_line(seen),
        *_fits(nproc, seen.count if seen else len(gpus)),
    ]
    checks += _ecc(gpus)
    busy = [gpu for gpu in gpus if gpu.used_bytes > BUSY_BYTES]
    if jobs or busy:
        told = ", ".join(f"process {pid} ({in_bytes(used)})" for pid, used in jobs[:4])
        held = ", ".join(f"GPU {gpu.index} holds {in_bytes(gpu.used_bytes)}" for gpu in busy[:4])
        remedy = "end them or leave these GPUs out with CUDA_VISIBLE_DEVICES: memory and speed are shared"
        checks.append(Check("GPUs in use", "warn", "; ".join(filter(None, (told, held))), remedy))
    return checks


def _count(gpus: list[Gpu], name: str) -> int:
    return sum(gpu.name == name for gpu in gpus)


def _torch_line(num_gpus: int, seen: Seen | None) -> Check:
    if seen is None:
        return Check("torch on GPUs", "skipped", "torch is not installed")
    if seen.built_for is None:
        remedy = "install a CUDA build: `pip install torch==2.13.0` from PyPI on Linux is one"
        return Check("torch on GPUs", "fail", f"a CPU build of torch beside {num_gpus} GPUs", remedy)
    found = f"sees {seen.count} of {num_gpus or seen.count}, built for CUDA {seen.built_for}"
    if seen.count == 0:
        remedy = (
            "the driver is too old for this build (`nvidia-smi` shows the CUDA that it takes), or "
            "CUDA_VISIBLE_DEVICES is empty"
        )
        return Check("torch on GPUs", "fail", found, remedy)
    if seen.count < num_gpus:
        return Check("torch on GPUs", "warn", found, "see CUDA_VISIBLE_DEVICES, unless a scheduler set it")
    return Check("torch on GPUs", "pass", found)


def _xformers_line(seen: Seen | None) -> list[Check]:
    if seen is None or seen.no_xformers is None:
        return []
    remedy = (
        "if it lacks libcudart.so.12: `pip install nvidia-cuda-runtime-cu12`; without xformers attention is "
        "torch's own"
    )
    return [Check("xformers", "skipped", seen.no_xformers, remedy)]


def _fits(nproc: int | None, count: int) -> list[Check]:
    if nproc is None:
        return []
    if count == 0:
        return [Check("--nproc", "pass", f"{nproc} ranks on the CPU")]
    if nproc > count:
        found = f"{nproc} ranks for {count} GPUs"
        return [Check("--nproc", "fail", found, f"--nproc {count}: NCCL takes one rank a GPU")]
    if nproc < count:
        found = f"{nproc} ranks for {count} GPUs"
        return [Check("--nproc", "warn", found, f"--nproc {count} uses all of them")]
    return [Check("--nproc", "pass", f"a rank for each of {count} GPUs")]


def _ecc(gpus: list[Gpu]) -> list[Check]:
    counted = [gpu for gpu in gpus if gpu.ecc_errors is not None]
    broken = [gpu for gpu in counted if gpu.ecc_errors]
    if broken:
        found = ", ".join(f"GPU {gpu.index}: {gpu.ecc_errors} uncorrected" for gpu in broken)
        remedy = "reset it with `nvidia-smi -r` or reboot; if they come back, have the GPU replaced"
        return [Check("GPU memory errors", "fail", found, remedy)]
    return [Check("GPU memory errors", "pass", "none uncorrected")] if counted else []


def look_at_gpus(nproc: int | None) -> tuple[list[Check], dict[str, Any]]:
    """Lines about this machine's GPUs, and the facts that hosts are compared by."""
    told, problem = ask_driver(f"--query-gpu={','.join(FIELDS)}")
    gpus = gpus_in(told or "")
    apps, _ = ask_driver("--query-compute-apps=pid,used_memory") if gpus else (None, "")
    seen = seen_by_torch()
    facts: dict[str, Any] = {"num_gpus": seen.count if seen else len(gpus)}
    if gpus:
        facts |= {"gpus": ", ".join(sorted(gpu.name for gpu in gpus)), "driver": gpus[0].driver}
    if seen is not None and seen.built_for:
        facts["cuda"] = seen.built_for
    return check_gpus(gpus, problem, seen, jobs_in(apps or ""), nproc), facts
