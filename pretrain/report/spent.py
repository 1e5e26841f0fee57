"""Where time and memory went, from a run's own figures."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.figures import Metrics
from pretrain.report.records import is_finite, numbers

# Time that training stood still for, a logged step: the key, and what it is called.
STALLS = {
    "perf/save_stall_ms": "saves",
    "perf/health_ms": "looks at features",
    "perf/probe_ms": "probes",
    "perf/pictures_ms": "pictures over steps",
}
WAITING, COMPUTE = "waiting for data", "compute"


@dataclass(frozen=True)
class Spent:
    """Seconds of training by what they went to, the largest part first; all of the steps that count."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def share(self, part: str) -> float:
        return self.parts.get(part, 0.0) / max(self.seconds, 1e-12)

    @property
    def shares(self) -> dict[str, float]:
        return {part: self.share(part) for part in self.parts}


def where_time_went(metrics: Metrics) -> Spent:
    """What each part took, added up over the logged steps; empty when no step says how long it took.

    Steps that were taken again after a restart or a rollback count once.
    """
    whole = 0.0
    parts: dict[str, float] = {}
    before = 0
    for line in metrics:
        steps, before = line["step"] - before, line["step"]
        if not is_finite(line.get("perf/step_ms")):
            continue
        seconds = steps * line["perf/step_ms"] / 1000
        whole += seconds
        if is_finite(line.get("data/wait_share")):
            parts[WAITING] = parts.get(WAITING, 0.0) + seconds * line["data/wait_share"]
        for key, name in STALLS.items():
            if is_finite(line.get(key)):
                parts[name] = parts.get(name, 0.0) + min(line[key] / 1000, seconds)
    if whole <= 0 or WAITING not in parts:
        return Spent({})
    rest = max(0.0, whole - sum(parts.values()))
    return Spent({COMPUTE: rest} | dict(sorted(parts.items(), key=lambda part: -part[1])))


@dataclass(frozen=True)
class Use:
    """What a run took of its machine: a name, and the figure with its unit."""

    name: str
    figure: str


def memory_and_load(metrics: Metrics) -> list[Use]:
    """The most memory of host and device, how busy they were, the share of the peak: what was logged."""
    found = []
    for key, name in (
        ("system/host_memory_bytes", "memory of a rank's process, at most"),
        ("system/loader_memory_bytes", "memory of its loader workers, at most"),
        ("system/gpu_memory_bytes", "memory of the device, at most"),
    ):
        if values := numbers(metrics, key):
            found.append(Use(name, gigabytes(max(values))))
    if values := numbers(metrics, "system/host_available_bytes"):
        found.append(Use("memory that the host had left, at least", gigabytes(min(values))))
    if values := numbers(metrics, "system/gpu_memory_share"):
        found.append(Use("share of the device's memory, at most", f"{max(values):.0%}"))
    for key, name in (
        ("system/cpu_share", "CPU in use, mean"),
        ("system/gpu_share", "device in use, mean"),
    ):
        if values := numbers(metrics, key):
            found.append(Use(name, f"{sum(values) / len(values):.0%}"))
    if values := numbers(metrics, "perf/tflops"):
        found.append(Use("model TFLOP/s a rank, median", f"{median(values):.3g}"))
    if values := numbers(metrics, "perf/mfu"):
        found.append(Use("share of the device's peak (MFU), median", f"{median(values):.1%}"))
    return found


def median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes < 1e10 else f"{size_bytes / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Such as 42 s, 3.5 min, 7.2 h, 3.1 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if size == 1 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"
