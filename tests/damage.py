"""Damages a file of a run's folder can have, and folders that have them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEEP = "[" * 20_000
HUGE, LONG = "9" * 400, "9" * 5000  # beyond a float; beyond what Python reads as a whole number


def _put(text: str | bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "NUL": _put(b"\0" * 4096),
    "nested": _put(DEEP),
    "nested object": _put('{"step": 1, "scores": ' * 20_000 + "1" + "}" * 20_000),
    "long": _put(f'{{"step": {LONG}, "run_id": {LONG}}}\n\n'),
    "folder": _folder,
    "pipe": _pipe,
    "no UTF-8": _put(b"\xff\xfe{}"),
}
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "health.jsonl",
    "probes.jsonl",
    "restarts.jsonl",
    "probe.json",
    "provenance.json",
    "result.json",
    "failure.json",
    "mlflow_run.json",
    ".lock",
)


@contextmanager
def in_time(seconds: int = 20) -> Iterator[None]:
    """What waits for a pipe that nobody writes to fails, and holds up no other test."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def with_value(file: Path, key: str, value: str) -> None:
    """Every line of a file of lines gets this value, as it is written in JSON or against its rules."""
    lines = [json.dumps(json.loads(line) | {key: "@@"}) for line in file.read_text().splitlines()]
    file.write_text("".join(line.replace('"@@"', value) + "\n" for line in lines))


NUMBERS = (HUGE, "1.7e308", "-1.7e308", "1e400", '"x"')
KEYS = ("step", "loss", "perf/clips_per_s", "perf/step_ms", "time_s", "health/target_std_start", "optim/lr")
