"""How long a step takes, from what it computes, sends and reads; and which of them it waits for."""

from __future__ import annotations

from dataclasses import dataclass

from launch.estimate.communication import Sent
from launch.estimate.loading import clip_cost
from launch.estimate.stated import HIDDEN_SHARE, Stated
from pretrain.config import RunConfig

ENCODING = "mp4"


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, by what takes them; loading and storage work beside the others.

    hidden_s: of the network's, what goes on while ranks compute.
    binds: compute, network, loader or storage: what most of the step waits for.
    """

    compute_s: float
    network_s: float
    loader_s: float
    storage_s: float
    hidden_s: float
    clips: int

    @property
    def work_s(self) -> float:
        """Of the ranks: computing, and sending what is not hidden behind it."""
        return self.compute_s + self.network_s - self.hidden_s

    @property
    def overlaps(self) -> bool:
        return self.hidden_s > 0

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


def hidden_s(sends: Sent, compute_s: float, backward_share: float, bandwidth: float) -> float:
    """Of the network's seconds, those that pass while ranks compute.

    At ZeRO-1 and 2 a buffer is reduced while the next one fills, and the last when the backward has ended: of
    n buffers that take b to fill and c to reduce, (n - 1) min(b, c) is hidden. ZeRO-1 has only the last
    backward of a step for it. ZeRO-3 gathers and reduces beside all that is computed, at best.
    """
    if not sends.overlaps:
        return 0.0
    if sends.is_split:
        return HIDDEN_SHARE * min(compute_s, sends.total / bandwidth)
    backward_s = backward_share * compute_s * sends.sums / sends.forwards
    return HIDDEN_SHARE * (1 - 1 / sends.buffers) * min(backward_s, sends.gradients / bandwidth)


def speed(
    config: RunConfig, stated: Stated, flops_a_clip: float, backward_share: float, sends: Sent
) -> Speed:
    """Of a whole step, all ranks together. backward_share: of what is computed."""
    clips, ranks = config.train.global_batch, stated.ranks
    cpu_s, size = clip_cost(config, ENCODING, stated.gpu.device)
    peak = stated.gpu.peak(config.train.precision)
    compute_s = clips * flops_a_clip / (ranks * stated.mfu * peak)
    return Speed(
        compute_s=compute_s,
        network_s=sends.total / stated.bandwidth,
        loader_s=clips / ranks * cpu_s / max(1, config.data.workers),
        storage_s=clips * size / stated.storage,
        hidden_s=hidden_s(sends, compute_s, backward_share, stated.bandwidth),
        clips=clips,
    )
