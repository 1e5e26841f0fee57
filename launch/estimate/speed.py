"""How long a step takes, from what it computes, sends and reads; and which of them it waits for."""

from __future__ import annotations

from dataclasses import dataclass

from launch.estimate.communication import Sent
from launch.estimate.loading import clip_cost
from launch.estimate.stated import Stated
from pretrain.config import RunConfig

ENCODING = "mp4"


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, by what takes them; loading and storage work beside the others.

    binds: compute, network, loader or storage: what most of the step waits for.
    """

    compute_s: float
    network_s: float
    loader_s: float
    storage_s: float
    overlaps: bool
    clips: int

    @property
    def work_s(self) -> float:
        """Of the ranks: computing and sending, one after the other unless they overlap."""
        if self.overlaps:
            return max(self.compute_s, self.network_s)
        return self.compute_s + self.network_s

    @property
    def step_s(self) -> float:
        return max(self.work_s, self.loader_s, self.storage_s)

    @property
    def clips_per_s(self) -> float:
        return self.clips / self.step_s

    @property
    def binds(self) -> str:
        fed = {"loader": self.loader_s, "storage": self.storage_s}
        slowest = max(fed, key=lambda name: fed[name])
        if fed[slowest] > self.work_s:
            return slowest
        return "network" if self.network_s > self.compute_s else "compute"


def speed(config: RunConfig, stated: Stated, flops_a_clip: float, sends: Sent) -> Speed:
    """Of a whole step, all ranks together."""
    clips, ranks = config.train.global_batch, stated.ranks
    cpu_s, size = clip_cost(config, ENCODING, stated.gpu.device)
    peak = stated.gpu.peak(config.train.precision)
    return Speed(
        compute_s=clips * flops_a_clip / (ranks * stated.mfu * peak),
        network_s=sends.total / stated.bandwidth,
        loader_s=clips / ranks * cpu_s / max(1, config.data.workers),
        storage_s=clips * size / stated.storage,
        overlaps=sends.overlaps,
        clips=clips,
    )
