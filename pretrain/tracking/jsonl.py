"""metrics.jsonl: one object a logged step, appended, cut back at resume, set aside at a rollback."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any

from data_pipeline.storage import Storage
from pretrain.tracking.base import FLUSH_S, RunFacts, Status, Value

METRICS_FILE = "metrics.jsonl"
ROLLED_BACK_FILE = "rolled_back.jsonl"
HEALTH_FILE = "health.jsonl"  # its lines are of pretrain/events.py


class JsonlTracker:
    """Appends to `<run>/metrics.jsonl`; a line is whole or, after a crash, the last one."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / METRICS_FILE
        self._file: IO[str] | None = None

    def start(self, facts: RunFacts, resumed_at: int = 0) -> None:
        """Lines after `resumed_at` go; aside, where a rollback was cut short before it could do so."""
        if (to_step := untold_rollback(self.run)) is not None:
            set_aside_after(self.run, min(to_step, resumed_at))
        truncate_after(self.run, resumed_at)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        assert self._file is not None, "start() comes first"
        line = {"step": step, **{key: _plain(value) for key, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")

    def log_file(self, path: Path, folder: str = "") -> None:
        """Nothing to do: the file lies in the run's folder."""

    def log_picture(self, path: Path, step: int) -> None:
        """Nothing to do: the picture lies in the run's folder."""

    def roll_back(self, to_step: int, note: str) -> None:
        """Move the lines after `to_step` to rolled_back.jsonl, each with the number of this rollback."""
        assert self._file is not None, "start() comes first"
        self.flush()
        set_aside_after(self.run, to_step)
        self._file.close()  # the one that it writes to is no longer there
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def flush(self, longest_s: float = FLUSH_S) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self, status: Status) -> None:
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None


def _plain(value: Value) -> Value | None:
    """JSON has no NaN and no infinity: both become null, so that any reader can read the line."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_line(line: str) -> dict[str, Any] | None:
    """The object with a step of a line; None of half a line, as a crash leaves it, or of anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # the latter of a line that is nested without end
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return found if isinstance(step, int) and 0 <= step < 1 << 63 else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects with a step of such a file, as they were written; what a crash left half-written is not."""
    if not path.exists():
        return []
    lines = map(parse_line, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line is not None]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The logged steps in order, each with all that was logged of it.

    What comes later of a step, such as a probe's scores, is a line of its own; where a key stands twice (a
    run that was killed before its first checkpoint), the later value counts.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in read_lines(run / METRICS_FILE):
        steps[line["step"]] = steps.get(line["step"], {}) | line
    return [steps[step] for step in sorted(steps)]


def cut_lines_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which a resumed run takes again, and half a line, atomically."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= step)
        Storage(path.parent).publish(path.name, kept.encode())


def _step_of(line: str) -> float:
    """The step of a line; of half a line, as a crash leaves it, infinity."""
    found = parse_line(line)
    return float("inf") if found is None else float(found["step"])


def truncate_after(run: Path, step: int) -> int:
    """Drop the lines of steps after `step` and half-written ones, atomically; how many lines are left."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    if kept or (run / METRICS_FILE).exists():
        _publish(run, METRICS_FILE, kept)
    return len(kept)


def last_set_aside(lines: list[dict[str, Any]]) -> int:
    """The number of the last rollback among the lines of rolled_back.jsonl."""
    numbers = [line.get("rollback") for line in lines]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def untold_rollback(run: Path) -> int | None:
    """The step that the last rollback went back to, where it was killed before its lines were set aside."""
    events = [line for line in read_lines(run / HEALTH_FILE) if line.get("response") == "rolled back"]
    if len(events) <= last_set_aside(read_lines(run / ROLLED_BACK_FILE)):
        return None
    to_step = events[-1].get("to_step")
    return to_step if isinstance(to_step, int) else None


def set_aside_after(run: Path, step: int) -> int:
    """Move the lines of steps after `step` to rolled_back.jsonl with `rollback`, its number; that number.

    Those that go are written down before they are taken away, so a crash in between loses none.
    """
    lines, before = read_lines(run / METRICS_FILE), read_lines(run / ROLLED_BACK_FILE)
    number = 1 + last_set_aside(before)
    gone = [line | {"rollback": number} for line in lines if line["step"] > step]
    if gone:
        _publish(run, ROLLED_BACK_FILE, [*before, *gone])
        truncate_after(run, step)
    return number


def _publish(run: Path, name: str, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Storage(run).publish(name, text.encode())
