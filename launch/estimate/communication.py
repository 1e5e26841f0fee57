"""What a rank sends in a step, by what it is for.

Bytes of ring collectives over N ranks: (N - 1) / N of a tensor for a gather or a scattered sum, twice that
for a sum that all get (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). Which collectives
DeepSpeed 0.19.8 calls, and with how much, was counted on real ranks (tests/distributed/test_live_step.py):
ZeRO-1 and 2 sum gradients for all ranks though each keeps a share; ZeRO-2 and 3 after every forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from launch.estimate.memory import Weights
from pretrain.config import Plan
from pretrain.memory import FLOAT, bucket_size, reduced_at_once


@dataclass(frozen=True)
class Called:
    """Bytes of the tensors that one rank's collectives work on in a step."""

    summed: float = 0.0
    scattered: float = 0.0
    gathered_weights: float = 0.0
    gathered_target: float = 0.0


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends in a step.

    overlaps: gradients while the backward goes on, at ZeRO-3 weights and target too, which `is_split` says.
    buffers: into which the gradients of a backward are cut. forwards: a step's; sums: after how many of them
    gradients are summed.
    """

    gradients: float
    weights: float
    target: float
    overlaps: bool = False
    is_split: bool = False
    buffers: int = 1
    forwards: int = 1
    sums: int = 1

    @property
    def total(self) -> float:
        return self.gradients + self.weights + self.target


def called(laid_out: Plan, weights: Weights) -> Called:
    """By which collectives, with how much."""
    config, ranks, forwards = laid_out.config, laid_out.world_size, laid_out.micro_batches
    strategy, width = config.strategy, 2 if config.train.precision == "bf16" else FLOAT
    summed = FLOAT if strategy.kind == "deepspeed" and strategy.reduce_in_fp32 else width
    moves = config.target.kind == "ema" and weights.target > 0
    if strategy.kind == "single":
        return Called()
    if strategy.zero_stage == 0:
        target = width * weights.target if moves else 0
        return Called(summed=FLOAT * weights.trained, gathered_target=target)
    if strategy.zero_stage == 3:
        kept = 2 * bucket_size(weights.trained)  # is still there when it is asked for again
        each = max(weights.trained, 2 * weights.trained - kept)
        return Called(
            scattered=forwards * summed * weights.trained,
            gathered_weights=forwards * width * each,
            gathered_target=forwards * width * weights.target,
        )
    times = forwards if strategy.zero_stage == 2 else 1
    padded = ranks * min(weights.target, -(-weights.trained // ranks))  # the fullest rank's, of each
    return Called(
        summed=times * summed * weights.trained,
        gathered_weights=width * weights.trained,
        gathered_target=width * padded if moves else 0,
    )


def sent(laid_out: Plan, weights: Weights) -> Sent:
    """What a rank sends, and what of it goes on while it computes (docs/decisions/0020-overlap.md)."""
    found, strategy = called(laid_out, weights), laid_out.config.strategy
    share = (laid_out.world_size - 1) / laid_out.world_size
    return Sent(
        gradients=share * (2 * found.summed + found.scattered),
        weights=share * found.gathered_weights,
        target=share * found.gathered_target,
        overlaps=strategy.kind == "deepspeed" and strategy.overlaps,
        is_split=strategy.kind == "deepspeed" and strategy.zero_stage == 3,
        buffers=-(-weights.trained // reduced_at_once(laid_out.config, weights.trained)),
        forwards=laid_out.micro_batches,
        sums=1 if strategy.kind == "single" or strategy.zero_stage < 2 else laid_out.micro_batches,
    )
