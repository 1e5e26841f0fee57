"""How fast a run is and what it takes of its machines, for each logged line: `perf/tflops`, `system/…`."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.config import Plan
from pretrain.flops import Flops, flops_of
from pretrain.objective.base import Batch
from pretrain.peaks import peak_tflops
from pretrain.strategy.base import World
from pretrain.system import System, disk_free, figures, over_ranks


class Speed:
    """Counts the FLOPs of the batches that pass on this rank; all ranks make it, note and take alike."""

    def __init__(self, plan: Plan, world: World, run: Path) -> None:
        self._config, self._world, self._run = plan.config, world, run
        self._has_gpu = world.device.type == "cuda"
        name = torch.cuda.get_device_name(world.device) if self._has_gpu else ""
        self._peak = peak_tflops(name, plan.config.train.precision)
        self._system = System(world.device)
        self._done = Flops()

    def note(self, batch: Batch) -> None:
        """A micro-batch goes forward and backward."""
        self._done += flops_of(self._config, batch.masks)

    def take(self, elapsed_s: float) -> dict[str, float]:
        """The metrics of what was done since the last call, `elapsed_s` seconds ago; one small collective.

        A rank's TFLOP/s are the mean over ranks.
        """
        done, self._done = self._done, Flops()
        own = (done.model, done.recomputed, *figures(self._system.read()))
        sent = torch.tensor(own, dtype=torch.float64, device=self._world.device)
        each = self._world.gather(sent)().tolist()
        model, recomputed = (sum(row[n] for row in each) / len(each) / elapsed_s / 1e12 for n in (0, 1))
        values = {"perf/tflops": model}
        if recomputed:
            values["perf/hardware_tflops"] = model + recomputed
        if self._peak is not None:
            values["perf/mfu"] = model / self._peak
        values |= over_ranks([row[2:] for row in each], has_gpu=self._has_gpu)
        return values | (disk_free(self._run) if self._world.is_first else {})
