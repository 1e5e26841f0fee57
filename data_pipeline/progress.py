"""How far a long job is: the function that it calls, and what it tells that function of its rate."""

from __future__ import annotations

import time
from collections.abc import Callable

# Takes a stage, done, total (0 when not known), and a note: what is counted ("clips"), or more than that
# ("3 failed").
Progress = Callable[[str, int, int, str], None]


class Rates:
    """Turns counts into a progress line: done, total, units and MB a second. Takes a clock."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stage, self._total, self._unit, self._progress, self._clock = (
            stage,
            total,
            unit,
            progress,
            clock,
        )
        self._start, self._bytes, self.done, self.failed = clock(), 0, 0, 0
        progress(stage, 0, total, "")

    def add(self, count: int = 1, num_bytes: int = 0, failed: int = 0) -> None:
        """Count work done just now."""
        self.done, self._bytes, self.failed = self.done + count, self._bytes + num_bytes, self.failed + failed
        elapsed = max(self._clock() - self._start, 1e-3)
        note = f"{self.done / elapsed:.1f} {self._unit}/s"
        if self._bytes:
            note += f" · {self._bytes / elapsed / 1e6:.2f} MB/s"
        if self.failed:
            note += f" · {self.failed} failed"
        self._progress(self._stage, min(self.done, self._total), self._total, note)
