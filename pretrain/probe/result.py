"""What a probing leaves in a run's folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.storage import read_regular

PROBE_FILE = "probe.json"
Progress = Callable[[str, int, int, str], None]  # stage, done, total, note


def row(encoder: str, scores: dict[str, float]) -> dict[str, Any]:
    plain = {name: round(score, 4) if math.isfinite(score) else None for name, score in scores.items()}
    return {"encoder": encoder, "scores": plain}


def read_probe(run: Path) -> dict[str, Any] | None:
    """What the last probe of a run found; None before the first.

    Raises: DataError when the file is there and cannot be read.
    """
    return read_json(run / PROBE_FILE, f"`foreframe probe {run}` writes it anew")


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """A JSON object of a run's folder; None when it is absent.

    remedy: what to do about it when it is damaged.
    Raises: DataError when it is there and cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(read_regular(path))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): {remedy}") from error
    return found


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Append an object to a file of lines; half a line that a crash left there stays one of its own."""
    text = json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
