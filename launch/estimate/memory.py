"""What a rank holds at every ZeRO stage, what of it fits, and the largest micro-batch that does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.estimate.stated import Stated
from pretrain.activations import Activations, activations_a_clip, last_gradients
from pretrain.config import DeepSpeedConfig, Plan, RunConfig, SingleConfig
from pretrain.memory import Held, at_once, held

Strategy = SingleConfig | DeepSpeedConfig


@dataclass(frozen=True)
class Weights:
    """Elements: that are trained, of them the predictor's, and of the target (0 where it has none)."""

    trained: int
    predictor: int
    target: int


@dataclass(frozen=True)
class Column:
    """One way to train the run. is_own: the one that its config names.

    activations: at their most. moments: bytes of a rank's device at each moment of a step, all together.
    micro_batch: the largest that fits and divides a rank's clips, 0 where none does; room: clips that would
    fit; *_recomputing: with blocks computed again.
    """

    name: str
    held: Held
    is_own: bool
    activations: float
    moments: dict[str, float]
    micro_batch: int
    micro_batch_recomputing: int
    room: int
    room_recomputing: int

    @property
    def most(self) -> float:
        return max(self.moments.values())


def with_strategy(config: RunConfig, strategy: Strategy) -> RunConfig:
    return config.model_copy(update={"strategy": strategy})


def of_stage(config: RunConfig, stage: int, *, recomputes: bool | None = None) -> RunConfig:
    """The run at another ZeRO stage. recomputes: None as configured."""
    own = config.strategy
    given = {
        "zero_stage": stage,
        "offload_optimizer": own.kind == "deepspeed" and own.offload_optimizer,
        "overlap_comm": own.overlap_comm if own.kind == "deepspeed" and stage else None,
        "reduce_in_fp32": own.kind == "deepspeed" and own.reduce_in_fp32,
        "activation_checkpointing": own.activation_checkpointing if recomputes is None else recomputes,
    }
    return with_strategy(config, DeepSpeedConfig.model_validate(given))


def recomputing(config: RunConfig, recomputes: bool) -> RunConfig:
    strategy = config.strategy.model_copy(update={"activation_checkpointing": recomputes})
    return with_strategy(config, strategy)


def moments_of(laid_out: Plan, weights: Weights, a_clip: Activations) -> dict[str, float]:
    """Bytes of a rank's device at each moment of a step. a_clip: activations of one clip."""
    config = laid_out.config
    alive = a_clip.times(config.train.micro_batch)
    found = held(laid_out, weights.trained, weights.target)
    return at_once(laid_out, found, alive, weights.trained, weights.predictor, last_gradients(config))


def with_micro_batch(config: RunConfig, ranks: int, micro_batch: int) -> Plan:
    """The run laid out with another micro-batch, one that divides a rank's clips."""
    forwards = config.train.global_batch // (ranks * micro_batch)
    return Plan(_with_clips(config, micro_batch), ranks, forwards)


def largest_micro_batch(
    config: RunConfig,
    ranks: int,
    usable: float,
    weights: Weights,
    a_clip: Activations,
    at_most: int | None = None,
) -> int:
    """The largest that fits and divides a rank's clips; 0 where not even one clip fits."""
    clips = config.train.global_batch // ranks
    for micro_batch in (n for n in range(min(clips, at_most or clips), 0, -1) if clips % n == 0):
        laid_out = with_micro_batch(config, ranks, micro_batch)
        if max(moments_of(laid_out, weights, a_clip).values()) <= usable:
            return micro_batch
    return 0


def clips_that_fit(laid_out: Plan, usable: float, weights: Weights, a_clip: Activations) -> int:
    """Of a forward; bytes grow by as much with every clip."""
    none, one = (
        moments_of(
            Plan(_with_clips(laid_out.config, clips), laid_out.world_size, laid_out.micro_batches),
            weights,
            a_clip,
        )
        for clips in (0, 1)
    )
    fit = (
        (usable - none[moment]) / (one[moment] - none[moment])
        for moment in none
        if one[moment] > none[moment]
    )
    return max(0, math.floor(min(fit))) if max(none.values()) <= usable else 0


def _with_clips(config: RunConfig, clips: int) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": clips})})


def columns(laid_out: Plan, weights: Weights, stated: Stated) -> tuple[Column, ...]:
    """One for each way to train: one process if that is configured, and every ZeRO stage that can be."""
    config, ranks = laid_out.config, laid_out.world_size
    own = config.strategy
    ways: list[tuple[str, RunConfig, bool]] = []
    if own.kind == "single":
        ways.append(("one process", config, True))
    offloads = own.kind == "deepspeed" and own.offload_optimizer
    for stage in range(1 if config.train.precision == "bf16" or offloads else 0, 4):
        is_own = own.kind == "deepspeed" and own.zero_stage == stage
        ways.append((f"ZeRO-{stage}", of_stage(config, stage), is_own))
    device = stated.gpu.device
    a_clip = {again: activations_a_clip(recomputing(config, again), device) for again in (False, True)}
    found = []
    for name, way, is_own in ways:
        again = way.strategy.activation_checkpointing
        other = Plan(way, ranks, laid_out.micro_batches)
        largest = {
            each: largest_micro_batch(recomputing(way, each), ranks, stated.usable, weights, a_clip[each])
            for each in (False, True)
        }
        room = {
            each: clips_that_fit(
                Plan(recomputing(way, each), ranks, laid_out.micro_batches),
                stated.usable,
                weights,
                a_clip[each],
            )
            for each in (False, True)
        }
        found.append(
            Column(
                name,
                held(other, weights.trained, weights.target),
                is_own,
                a_clip[again].times(config.train.micro_batch).most,
                moments_of(other, weights, a_clip[again]),
                largest[False],
                largest[True],
                room[False],
                room[True],
            )
        )
    return tuple(found)
