"""How far a long job is: the function that it calls, and what it tells that function of its rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

# Takes a stage, done, total (0 when not known), and a note: what is counted ("clips"), or more than that
# ("3 failed").
Progress = Callable[[str, int, int, str], None]


class Rates:
    """Turns counts into a progress line: done, total, units and MB a second, what is left. Takes a clock."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stage, self._total, self._unit, self._progress = stage, total, unit, progress
        self._clock, self._start, self._bytes = clock, clock(), 0
        self.done = 0
        self.counts: Counter[str] = Counter()
        progress(stage, 0, total, "")

    def add(self, count: int = 1, num_bytes: int = 0, **counts: int) -> None:
        """Count work done just now. counts: such as failed=1 or filtered=1; those above 0 are told."""
        self.done, self._bytes = self.done + count, self._bytes + num_bytes
        self.counts.update(counts)
        elapsed = max(self._clock() - self._start, 1e-3)
        rate = self.done / elapsed
        parts = [f"{rate:.0f} {self._unit}/s" if rate >= 100 else f"{rate:.1f} {self._unit}/s"]
        if self._bytes:
            parts.append(f"{self._bytes / elapsed / 1e6:.1f} MB/s")
        parts += [f"{number} {what}" for what, number in self.counts.items() if number]
        if elapsed >= 1 and 0 < self.done < self._total:
            parts.append(f"{_duration(elapsed * (self._total - self.done) / self.done)} left")
        self._progress(self._stage, min(self.done, self._total), self._total, " · ".join(parts))


def _duration(seconds: float) -> str:
    """`2 d 3 h`, `1:02:03` or `2:03`."""
    whole = round(seconds)
    if whole >= 24 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
