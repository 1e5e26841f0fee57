"""What a rank holds at every ZeRO stage, what of it fits, and the largest micro-batch that does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.estimate.stated import Stated
from pretrain.activations import last_gradients, most_activations
from pretrain.config import DeepSpeedConfig, Plan, RunConfig, SingleConfig
from pretrain.config.training import MOST_CLIPS
from pretrain.flops import Again
from pretrain.memory import Held, at_once, held
from pretrain.recompute import blocks_again, fewest, share_again, with_again, with_all_again

MANY_CLIPS = 2048
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
    fit; *_recomputing: with blocks computed again. fewest: of them for the configured micro-batch, None where
    it does not fit.
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
    fewest: Fewest | None

    @property
    def most(self) -> float:
        return max(self.moments.values())


def with_strategy(config: RunConfig, strategy: Strategy) -> RunConfig:
    return config.model_copy(update={"strategy": strategy})


def of_stage(config: RunConfig, stage: int) -> RunConfig:
    """The run at another ZeRO stage, the same blocks computed again."""
    own = config.strategy
    given = {
        "zero_stage": stage,
        "offload_optimizer": own.kind == "deepspeed" and own.offload_optimizer,
        "overlap_comm": own.overlap_comm if own.kind == "deepspeed" and stage else None,
        "reduce_in_fp32": own.kind == "deepspeed" and own.reduce_in_fp32,
        "activation_checkpointing": own.activation_checkpointing,
        "recomputed_blocks": own.recomputed_blocks,
    }
    return with_strategy(config, DeepSpeedConfig.model_validate(given))


def recomputing(config: RunConfig, recomputes: bool) -> RunConfig:
    return with_all_again(config) if recomputes else with_again(config, Again(), Again())


@dataclass(frozen=True)
class Fewest:
    """The fewest blocks that are computed again so that a micro-batch fits.

    share: operations computed again, of the model's own. activations: bytes, at their most. blocks: in words.
    """

    micro_batch: int
    share: float
    activations: float
    blocks: str


def fewest_that_fit(
    config: RunConfig, ranks: int, micro_batch: int, usable: float, weights: Weights, device: str
) -> Fewest | None:
    """None where `micro_batch` clips a rank do not fit with all blocks computed again."""
    config = _with_clips(config, micro_batch)
    forwards = max(1, config.train.global_batch // (ranks * micro_batch))

    def fits(each: RunConfig) -> bool:
        return max(moments_of(Plan(each, ranks, forwards), weights, device).values()) <= usable

    found = fewest(config, fits)
    if found is None:
        return None
    most = most_activations(found, device).most
    return Fewest(micro_batch, share_again(found), most, blocks_again(found))


def moments_of(laid_out: Plan, weights: Weights, device: str) -> dict[str, float]:
    """Bytes of a rank's device at each moment of a step."""
    config = laid_out.config
    alive = most_activations(config, device)
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
    device: str,
    at_most: int | None = None,
) -> int:
    """The largest that fits and divides a rank's clips; 0 where not even one clip fits."""
    clips = config.train.global_batch // ranks
    most = min(clips, at_most or clips, MOST_CLIPS)
    if most > MANY_CLIPS:  # with one forward a step least is held besides: none is larger than fits then
        most = min(most, clips_that_fit(Plan(config, ranks, 1), usable, weights, device))
    for micro_batch in (n for n in range(most, 0, -1) if clips % n == 0):
        laid_out = with_micro_batch(config, ranks, micro_batch)
        if max(moments_of(laid_out, weights, device).values()) <= usable:
            return micro_batch
    return 0


def clips_that_fit(laid_out: Plan, usable: float, weights: Weights, device: str) -> int:
    """Of a forward, at as many forwards a step. Beyond MANY_CLIPS bytes grow by as much with every clip."""

    def at(clips: int) -> dict[str, float]:
        config = _with_clips(laid_out.config, clips)
        return moments_of(Plan(config, laid_out.world_size, laid_out.micro_batches), weights, device)

    many = at(MANY_CLIPS)
    if max(many.values()) <= usable:
        fewer = at(MANY_CLIPS // 2)
        each = {moment: 2 * (many[moment] - fewer[moment]) / MANY_CLIPS for moment in many}
        more = min((usable - many[moment]) / each[moment] for moment in many if each[moment] > 0)
        return MANY_CLIPS + math.floor(more)
    low, high = 0, MANY_CLIPS  # what fits, what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if max(at(middle).values()) <= usable else (low, middle)
    return low


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
    alive = most_activations(config, device).most
    found = []
    for name, way, is_own in ways:
        other = Plan(way, ranks, laid_out.micro_batches)
        largest = {
            each: largest_micro_batch(recomputing(way, each), ranks, stated.usable, weights, device)
            for each in (False, True)
        }
        room = {
            each: clips_that_fit(
                Plan(recomputing(way, each), ranks, laid_out.micro_batches),
                stated.usable,
                weights,
                device,
            )
            for each in (False, True)
        }
        found.append(
            Column(
                name,
                held(other, weights.trained, weights.target),
                is_own,
                alive,
                moments_of(other, weights, device),
                largest[False],
                largest[True],
                room[False],
                room[True],
                fewest_that_fit(way, ranks, config.train.micro_batch, stated.usable, weights, device),
            )
        )
    return tuple(found)
