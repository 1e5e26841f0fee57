"""What a run's last logged lines amount to, in figures and in words; the same for a panel and for status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.attempts import duration
from launch.run_files import finite
from pretrain.recent import RECENT, recent_loss

Line = Mapping[str, Any]
"""One of metrics.jsonl: `step`, and values by key."""

KEPT = 2 * RECENT  # lines to keep for the trend
SURE = 2.0  # standard errors that a change must exceed to be called one


@dataclass(frozen=True)
class Figures:
    """Of a run at its last logged step; None where no line says it.

    loss: see `recent_loss`. loss_change: of the last ten lines against the ten before; 0 within their noise.
    left_s: until the last step, at the pace of the last lines, or until the limit. gpu_memory_bytes,
    host_memory_bytes: of the rank that takes most, the host's with its loader's workers.
    """

    step: int = 0
    loss: float | None = None
    loss_change: float | None = None
    clips_per_s: float | None = None
    wait_share: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    left_s: float | None = None
    gpu_memory_bytes: float | None = None
    gpu_memory_share: float | None = None
    host_memory_bytes: float | None = None
    lr: float | None = None
    momentum: float | None = None
    skipped_steps: int = 0
    bad_samples: int = 0

    @classmethod
    def of(cls, lines: Sequence[Line], steps: int | None, limit_s: float | None = None) -> Figures:
        """lines: the last ones, oldest first; others than those of training may be among them.

        limit_s: of `train.time_limit_s`, after which a start of the run ends.
        """
        trained = [line for line in lines if number(line, "perf/clips_per_s") is not None]
        if not trained:
            return cls(step=int(lines[-1]["step"]) if lines else 0)
        last, paced = trained[-1], since_start(trained)
        losses = [found for line in trained if (found := number(line, "loss")) is not None]
        host = number(last, "system/host_memory_bytes")
        return cls(
            step=int(last["step"]),
            loss=recent_loss(trained),
            loss_change=change_of(losses),
            clips_per_s=number(last, "perf/clips_per_s"),
            # the first line of a start counts the start of the workers
            wait_share=number(last, "data/wait_share") if len(paced) > 1 else None,
            tflops=number(last, "perf/tflops"),
            mfu=number(last, "perf/mfu"),
            left_s=seconds_left(paced, steps, limit_s),
            gpu_memory_bytes=number(last, "system/gpu_memory_bytes"),
            gpu_memory_share=number(last, "system/gpu_memory_share"),
            host_memory_bytes=None
            if host is None
            else host + (number(last, "system/loader_memory_bytes") or 0.0),
            lr=number(last, "optim/lr"),
            momentum=number(last, "optim/momentum"),
            skipped_steps=int(number(last, "optim/skipped_steps") or 0),
            bad_samples=int(number(last, "data/bad_samples") or 0),
        )


def with_line(lines: tuple[Line, ...], line: Line) -> tuple[Line, ...]:
    """The last lines with one more; after a rollback steps come again, and those that were taken back go."""
    kept = tuple(each for each in lines if each["step"] < line["step"])
    return (*kept[1 - KEPT :], line)


def number(line: Line, key: str) -> float | None:
    """A value of a line that is a finite number, else None."""
    return finite(line.get(key))


def since_start(lines: Sequence[Line]) -> Sequence[Line]:
    """Those since the run was begun or last resumed, whose `time_s` counts from there."""
    for place in range(len(lines) - 1, 0, -1):
        now_s, before_s = number(lines[place], "time_s"), number(lines[place - 1], "time_s")
        if now_s is not None and before_s is not None and now_s < before_s:
            return lines[place:]
    return lines


def seconds_left(paced: Sequence[Line], steps: int | None, limit_s: float | None = None) -> float | None:
    """At the pace of the last lines of one start, saves and looks included; None before there is one.

    limit_s: seconds that a start may take in all; what is left of them, where they are over before the steps.
    """
    if steps is None:
        return None
    recent = paced[-RECENT - 1 :]
    first, last = recent[0], recent[-1]
    begin_s, end_s = number(first, "time_s"), number(last, "time_s")
    taken = int(last["step"]) - int(first["step"])
    if begin_s is None or end_s is None or taken <= 0:
        return None
    left_s = max(0, steps - int(last["step"])) * (end_s - begin_s) / taken
    return left_s if limit_s is None else min(left_s, max(0.0, limit_s - end_s))


def change_of(losses: Sequence[float]) -> float | None:
    """Of the mean of the last lines against those before, as a share; 0 within twice its standard error."""
    now, before = losses[-RECENT:], losses[-2 * RECENT : -RECENT]
    if len(before) < RECENT // 2:
        return None
    (mean, error), (old, old_error) = _mean_and_error(now), _mean_and_error(before)
    if old == 0:
        return None
    return 0.0 if abs(mean - old) <= SURE * math.hypot(error, old_error) else mean / old - 1.0


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def in_bytes(count: float) -> str:
    """Such as 61.2 GB, 840 MB; 10⁹ and 10⁶ bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count / 1e6:.0f} MB"


def percent(share: float) -> str:
    """Such as 41%, 0.4%; below one in a thousand 0%."""
    return f"{share:.1%}" if 0.001 <= share < 0.0095 else f"{share:.0%}"


def speed(figures: Figures) -> str:
    """Clips a second, and what that is of the device: `42.5 clips/s, MFU 41%`, or TFLOP/s of a rank."""
    if figures.clips_per_s is None:
        return ""
    return ", ".join([f"{figures.clips_per_s:.1f} clips/s", *work(figures)])


def work(figures: Figures) -> list[str]:
    """The share of the device's peak, or where that is not known TFLOP/s of a rank; nothing of neither."""
    if figures.mfu is not None:
        return [f"MFU {percent(figures.mfu)}"]
    if figures.tflops is None:
        return []
    is_large = figures.tflops >= 1
    return [f"{figures.tflops:.3g} TFLOP/s" if is_large else f"{1000 * figures.tflops:.3g} GFLOP/s"]


def memory(figures: Figures) -> list[str]:
    """Of the GPU with its share that is taken, and of the host."""
    told = []
    if figures.gpu_memory_bytes is not None:
        share = "" if figures.gpu_memory_share is None else f" ({percent(figures.gpu_memory_share)})"
        told.append(f"GPU {in_bytes(figures.gpu_memory_bytes)}{share}")
    if figures.host_memory_bytes is not None:
        told.append(f"host {in_bytes(figures.host_memory_bytes)}")
    return told


def troubles(figures: Figures) -> list[str]:
    """What was skipped or replaced, where anything was."""
    counts = ((figures.skipped_steps, "step", "skipped"), (figures.bad_samples, "sample", "replaced"))
    return [f"{count} {thing}{'' if count == 1 else 's'} {what}" for count, thing, what in counts if count]


def left(figures: Figures) -> str:
    return "" if figures.left_s is None else f"{duration(figures.left_s)} left"
