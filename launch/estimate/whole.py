"""All that is worked out of a run before it is started."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from launch.estimate.communication import Sent, sent
from launch.estimate.loading import CPU_MS, Loading, loading
from launch.estimate.memory import Column, Weights, columns, of_stage
from launch.estimate.saving import DAY_S, Saving, saving
from launch.estimate.speed import Speed, speed
from launch.estimate.stated import Stated
from launch.estimate.what_if import WhatIf, what_if
from launch.outline import num_parameters
from pretrain.config import Plan, RunConfig, plan
from pretrain.flops import Flops, backward_share, parts_a_clip
from pretrain.memory import checkpoint_bytes
from pretrain.recompute import blocks_again, settled


@dataclass(frozen=True)
class Estimate:
    """A run on a cluster. parts: FLOPs of a clip, the mean over masks. sends: of a rank a step, by column.

    again: which blocks are computed again, in words. forwards: of a rank a step. checkpoint: bytes of one,
    over all ranks. clips: of a step, over all ranks.
    """

    name: str
    precision: str
    stated: Stated
    weights: Weights
    again: str
    forwards: int
    micro_batch: int
    clips: int
    steps: int
    saves_every: int
    parts: dict[str, Flops]
    columns: tuple[Column, ...]
    sends: tuple[Sent, ...]
    speeds: tuple[Speed, ...]
    loadings: tuple[Loading, ...]
    workers: int
    saving: Saving
    what_if: tuple[WhatIf, ...]

    @property
    def ranks(self) -> int:
        return self.stated.ranks

    @property
    def flops(self) -> float:
        """Of a clip, forward and backward."""
        return sum(part.model for part in self.parts.values())

    @property
    def hardware_flops(self) -> float:
        """With what is computed again."""
        return sum(part.hardware for part in self.parts.values())

    @property
    def flops_a_step(self) -> float:
        """Over all ranks."""
        return self.clips * self.flops

    @property
    def checkpoint(self) -> int:
        return checkpoint_bytes(self.weights.trained, self.weights.target)

    @property
    def own(self) -> int:
        """Number of the column that is configured."""
        return next(number for number, column in enumerate(self.columns) if column.is_own)

    @property
    def speed(self) -> Speed:
        return self.speeds[self.own]

    @property
    def days(self) -> float:
        """Of the whole run, saving as configured."""
        return self.steps * self.speed.step_s / DAY_S / max(1e-9, 1 - self.saving.lost_own)

    @property
    def gpu_hours(self) -> float:
        return 24 * self.days * self.ranks

    @property
    def cost(self) -> float | None:
        return None if self.stated.price is None else self.gpu_hours * self.stated.price

    def plain(self) -> dict[str, Any]:
        """For JSON: bytes, seconds and operations, sums beside the parts; what is infinite is null."""
        names = (
            "ranks",
            "flops",
            "hardware_flops",
            "flops_a_step",
            "checkpoint",
            "days",
            "gpu_hours",
            "cost",
        )
        found = asdict(self) | {name: getattr(self, name) for name in names}
        found["stated"] |= {"usable": self.stated.usable, "bandwidth": self.stated.bandwidth}
        found |= {"trained": self.weights.trained, "target": self.weights.target}
        for column, plain in zip(self.columns, found["columns"], strict=True):
            plain["held"] |= {name: getattr(column.held, name) for name in ("always", "most", "host")}
            plain |= {"most": column.most, "fits": column.most <= self.stated.usable}
        for sends, plain in zip(self.sends, found["sends"], strict=True):
            plain["total"] = sends.total
        for speeds, plain in zip(self.speeds, found["speeds"], strict=True):
            plain |= {name: getattr(speeds, name) for name in ("step_s", "clips_per_s", "binds")}
        if math.isinf(found["saving"]["between_failures_s"]):
            found["saving"]["between_failures_s"] = None
        return found


def estimate(config: RunConfig, stated: Stated) -> Estimate:
    """Work a run out. Raises: ConfigError when the batch cannot be split so."""
    device = stated.gpu.device
    config = settled(config, device)
    laid_out = plan(config, stated.ranks)
    sizes = num_parameters(config)
    frozen = config.objective.kind == "action_latent"
    weights = Weights(
        trained=sizes["predictor"] + (0 if frozen else sizes["encoder"]),
        predictor=sizes["predictor"],
        target=0 if config.target.kind == "online" else sizes["encoder"],
    )
    parts = parts_a_clip(config)
    flops = sum(part.model for part in parts.values())
    ways = columns(laid_out, weights, stated)
    sends = tuple(sent(_laid_out_as(laid_out, way), weights) for way in ways)
    speeds = tuple(speed(config, stated, flops, backward_share(parts), each) for each in sends)
    own = speeds[next(number for number, way in enumerate(ways) if way.is_own)]
    return Estimate(
        name=config.name,
        precision=config.train.precision,
        stated=stated,
        weights=weights,
        again=blocks_again(config),
        forwards=laid_out.micro_batches,
        micro_batch=config.train.micro_batch,
        clips=config.train.global_batch,
        steps=config.train.steps,
        saves_every=config.train.checkpoint_every,
        parts=parts,
        columns=ways,
        sends=sends,
        speeds=speeds,
        loadings=tuple(loading(config, encoding, device, own.clips_per_s) for encoding in CPU_MS),
        workers=config.data.workers,
        saving=saving(
            checkpoint_bytes(weights.trained, weights.target),
            stated,
            own.step_s,
            config.train.steps,
            config.train.checkpoint_every,
            beside=config.train.save_in_background,
        ),
        what_if=tuple(what_if(config, stated, weights, parts)),
    )


def _laid_out_as(laid_out: Plan, column: Column) -> Plan:
    """The plan of one column."""
    stage = column.name.removeprefix("ZeRO-")
    if stage == column.name:
        return laid_out
    return Plan(of_stage(laid_out.config, int(stage)), laid_out.world_size, laid_out.micro_batches)
