"""Steps that were skipped because a gradient was not finite: which, and by which samples.

`skipped_steps.jsonl` in the run's folder, an object a step: step, grad_norm, losses (those that were not
finite, as words), suspects (ids of the micro-batches whose loss was not finite), ids (the whole batch's).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from pretrain.objective.base import Batch
from pretrain.strategy.base import Update, World
from pretrain.tracking.jsonl import cut_lines_after

FILE = "skipped_steps.jsonl"


class SkippedSteps:
    """Of one run, on every rank; rank 0 writes."""

    def __init__(self, run: Path, world: World, resumed_at: int) -> None:
        self._path, self._world = run / FILE, world
        self._batches: list[tuple[tuple[str, ...], Tensor]] = []
        if world.is_first:
            cut_lines_after(self._path, resumed_at)

    def note(self, batch: Batch, loss: Tensor) -> None:
        """A micro-batch of the step under way."""
        self._batches.append((batch.keys, loss.detach()))

    def after_step(self, step: int, update: Update) -> None:
        """Write the step down if it was skipped, and begin the next; every rank calls this."""
        batches, self._batches = self._batches, []
        if update.applied:
            return
        losses = torch.stack([loss for _, loss in batches]).tolist()
        own = [(list(keys), loss) for (keys, _), loss in zip(batches, losses, strict=True)]
        everybody = [found for rank in self._world.gather_objects(own) for found in rank]
        if not self._world.is_first:
            return
        bad = [(keys, loss) for keys, loss in everybody if not math.isfinite(loss)]
        record = {
            "step": step,
            "grad_norm": str(update.grad_norm),
            "losses": [str(loss) for _, loss in bad],
            "suspects": [key for keys, _ in bad for key in keys],
            "ids": [key for keys, _ in everybody for key in keys],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
