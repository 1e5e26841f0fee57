"""health.jsonl of a run: when the verdict on it changed, and what was done about it.

An object a line: step, verdict, reason, response (noted, warned, stopped, rolled back), time; of a rollback
to_step, samples and changes. Lines of rollbacks stay for good; others go when their steps are taken again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import CheckpointError
from data_pipeline.storage import Storage
from pretrain.progress import Changes, Progress
from pretrain.sentinel import Verdict
from pretrain.tracking.jsonl import HEALTH_FILE as EVENTS_FILE
from pretrain.tracking.jsonl import read_lines

Response = Literal["noted", "warned", "stopped", "rolled back"]


@dataclass(frozen=True)
class Void:
    """Checkpoints that a rollback has made count no more: of later steps, made before it.

    number: of the rollback, from 1. samples: at which the stream goes on; None, at the checkpoint's.
    """

    number: int
    to_step: int
    samples: int | None
    changes: Changes

    def applied(self, progress: Progress) -> Progress:
        """How a run goes on that was cut short before a checkpoint after the rollback was made."""
        if progress.changes.rollbacks >= self.number:
            return progress
        samples = progress.samples if self.samples is None else self.samples
        return replace(progress, changes=self.changes, samples=samples)

    def covers(self, step: int, rollbacks: int) -> bool:
        """Whether a checkpoint of this step, of a run that had gone back so often, is one of them."""
        return step > self.to_step and rollbacks < self.number


class Events:
    """Of one run; only rank 0 has one."""

    def __init__(self, run: Path, resumed_at: int) -> None:
        self._path = run / EVENTS_FILE
        rows = read_events(run)
        kept = [row for row in rows if row["step"] <= resumed_at or row.get("response") == "rolled back"]
        if kept or self._path.exists():
            Storage(run).publish(EVENTS_FILE, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(
        self,
        step: int,
        verdict: Verdict,
        response: Response,
        *,
        to_step: int | None = None,
        samples: int | None = None,
        changes: Changes | None = None,
    ) -> None:
        """samples: of the stream at which a rollback goes on. On disk on return."""
        row: dict[str, Any] = {
            "step": step,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "response": response,
            "to_step": to_step,
            "samples": samples,
            "changes": asdict(changes) if changes is not None else {},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_events(run: Path) -> list[dict[str, Any]]:
    """All lines in order; those that a crash left half-written are not among them."""
    return read_lines(run / EVENTS_FILE)


def last_void(run: Path) -> Void | None:
    """What the run's last rollback has made void; None where there was none.

    Raises: CheckpointError when its line is damaged: without it, what counts cannot be told.
    """
    rows = [row for row in read_events(run) if row.get("response") == "rolled back"]
    if not rows:
        return None
    to_step, samples = rows[-1].get("to_step"), rows[-1].get("samples")
    try:
        plain = rows[-1]["changes"]
        changes = Changes(int(plain["rollbacks"]), float(plain["lr_scale"]), float(plain["momentum"]))
        count = None if samples is None else int(samples)
        return Void(changes.rollbacks, int(to_step or 0), count, changes)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{run / EVENTS_FILE}: the line of the rollback at step {rows[-1]['step']} is damaged ({error}), "
            f"so which checkpoints count cannot be told; mend it, or remove it and the checkpoints after it"
        ) from error
