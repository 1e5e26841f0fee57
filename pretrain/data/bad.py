"""The samples that others stood in for: counted over all ranks, written down, limited."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.errors import DataError
from pretrain.config import DataConfig
from pretrain.progress import Progress
from pretrain.strategy.base import World
from pretrain.tracking.jsonl import cut_lines_after

SKIPPED_FILE = "skipped.jsonl"
NUM_LISTED = 10


class BadSamples:
    """Of one run; rank 0 writes `<run>/skipped.jsonl`, an object a replacement: step, id, reason."""

    def __init__(self, run: Path, world: World, data: DataConfig, resumed_at: int) -> None:
        self._path, self._world = run / SKIPPED_FILE, world
        self._limit, self._excluded = data.max_bad_samples, frozenset(data.exclude)
        self._found: list[tuple[int, str, str]] = []
        if world.is_first:
            cut_lines_after(self._path, resumed_at)

    def note(self, step: int, bad: tuple[tuple[str, str], ...]) -> None:
        self._found += [(step, key, reason) for key, reason in bad]

    def gather(self, progress: Progress) -> None:
        """Write down what all ranks noted, and count it; every rank calls this.

        Raises, on every rank: DataError when more different samples than the limit were unreadable.
        """
        if not self._world.any(bool(self._found)):
            return
        found = sorted(bad for rank in self._world.gather_objects(self._found) for bad in rank)
        self._found.clear()
        progress.bad_samples += len(found)
        progress.bad_ids = sorted({*progress.bad_ids, *(key for _, key, _ in found)})
        if self._world.is_first:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps({"step": step, "id": key, "reason": reason}) + "\n"
                    for step, key, reason in found
                )
        count = len(set(progress.bad_ids) - self._excluded)
        if count > self._limit:
            reasons = {key: reason for _, key, reason in found}
            listed = "; ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:NUM_LISTED])
            raise DataError(
                f"{count} samples could not be read, more than data.max_bad_samples = "
                f"{self._limit}: {listed}; all are in {self._path}; check the shards with `foreframe verify`"
            )
