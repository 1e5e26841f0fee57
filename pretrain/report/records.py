"""What a run's folder holds, read for a report: a file that is damaged is a sentence, and never an end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import why
from data_pipeline.storage import open_regular, read_regular
from pretrain.figures import Metrics
from pretrain.figures import is_finite as is_finite
from pretrain.tracking.jsonl import METRICS_FILE, read_metrics

Record = dict[str, Any]
LAST_STEP = 2**53  # beyond it float64 does not tell steps apart


@dataclass
class Records:
    """The files of a run's folder as plain values; `troubles` says what could not be read, and what to do.

    changes: health.jsonl. probings: probes.jsonl. rolled_back: lines of metrics that were taken back.
    attempts: restarts.jsonl, of all machines. skipped_samples, skipped_steps: an object each.
    """

    run: Path
    metrics: Metrics = ()
    probe: Record | None = None
    provenance: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    mlflow: Record = field(default_factory=dict)
    changes: list[Record] = field(default_factory=list)
    probings: list[Record] = field(default_factory=list)
    rolled_back: list[Record] = field(default_factory=list)
    attempts: list[Record] = field(default_factory=list)
    skipped_samples: list[Record] = field(default_factory=list)
    skipped_steps: list[Record] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def read_records(run: Path) -> Records:
    """Everything that can be read; raises nothing for what is absent or damaged."""
    found = Records(run)
    again = f"`foreframe probe {run}` writes it anew"
    without = "remove it, the report does without"
    found.probe = _object(found, "probe.json", again)
    found.provenance = _object(found, "provenance.json", without) or {}
    found.result = _object(found, "result.json", without) or {}
    found.mlflow = _object(found, "mlflow_run.json", without) or {}
    found.changes = _by_step(_lines(found, "health.jsonl"))
    found.probings = _by_step(_lines(found, "probes.jsonl"))
    found.rolled_back = _by_step(_lines(found, "rolled_back.jsonl"))
    found.skipped_samples = _by_step(_lines(found, "skipped.jsonl"))
    found.skipped_steps = _by_step(_lines(found, "skipped_steps.jsonl"))
    each = [_lines(found, path.name) for path in sorted(run.glob("restarts*.jsonl"))]
    found.attempts = sorted(
        (line for lines in each for line in lines if isinstance(line.get("began"), str)),
        key=lambda line: (line["began"], str(line.get("node", 0))),
    )
    found.metrics = _metrics(found)
    return found


def numbers(metrics: Metrics, key: str) -> list[float]:
    """The finite values of a metric, in order."""
    return [float(line[key]) for line in metrics if is_finite(line.get(key))]


def last_number(metrics: Metrics, key: str) -> float | None:
    """The newest finite value of a metric."""
    return next((float(line[key]) for line in reversed(metrics) if is_finite(line.get(key))), None)


def scores_of(record: Record, key: str = "scores") -> dict[str, float]:
    """The scores of a probing that are numbers, by name."""
    found = record.get(key)
    return {str(n): float(v) for n, v in found.items() if is_finite(v)} if isinstance(found, dict) else {}


def _by_step(lines: Sequence[Record]) -> list[Record]:
    """Those that name their step, in the order of the file."""
    return [line for line in lines if is_finite(step := line.get("step")) and step <= LAST_STEP]


def _metrics(found: Records) -> Metrics:
    """The logged steps, without those whose number no step can have."""
    path = found.run / METRICS_FILE
    try:
        if path.exists():
            open_regular(path).close()
        lines = read_metrics(found.run)
    except (OSError, ValueError, RecursionError) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        found.troubles.append(f"{path} cannot be read ({reason}): no curves")
        return ()
    whole = [line for line in lines if 0 <= line["step"] <= LAST_STEP]
    if len(whole) < len(lines):
        found.troubles.append(f"{path}: {len(lines) - len(whole)} steps have no number of a step, left out")
    return whole


def _object(found: Records, name: str, remedy: str) -> Record | None:
    path = found.run / name
    try:
        plain = json.loads(read_regular(path).decode())
        if isinstance(plain, dict):
            return plain
        reason = "it holds no object"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = why(error)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    found.troubles.append(f"{path} cannot be read ({reason}): {remedy}")
    return None


def _lines(found: Records, name: str) -> list[Record]:
    """An object a line. The last one may be half-written, as a crash leaves it; others that are not whole
    are counted and said."""
    path = found.run / name
    try:
        rows = read_regular(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        found.troubles.append(f"{path} cannot be read ({why(error)}): the report does without")
        return []
    whole, damaged = [], 0
    for number, row in enumerate(rows):
        try:
            plain = json.loads(row)
        except (ValueError, RecursionError):
            damaged += number < len(rows) - 1
            continue
        if isinstance(plain, dict):
            whole.append(plain)
        else:
            damaged += 1
    if damaged:
        said = "1 line is" if damaged == 1 else f"{damaged} lines are"
        found.troubles.append(f"{path}: {said} no JSON object and left out")
    return whole
