"""Bytes that a rank holds for weights, gradients, optimizer and target, by strategy and ZeRO stage.

`at_once` adds activations (activations.py): all of a step, moment by moment.

P weights are trained, E are the target's, N ranks share; w is 2 in bf16, 4 in float32. What is sharded over
ranks counts for the rank that has most of it.
Source: ZeRO, arXiv:1910.02054, sec. 3; the layout is DeepSpeed 0.19.8's, measured (benchmarks/memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.activations import Activations
from pretrain.config import Plan, RunConfig

FLOAT = 4
BUCKET = 100_000_000  # elements
OVERLAPPED_BUCKETS = 16  # into which gradients are cut that are reduced while the backward goes on
SMALLEST_BUCKET = 5_000_000  # elements: 10 MB in bf16, 20 in float32, of the order of torch DDP's 25 MB
REPLICATED_BUCKET = 500_000_000  # elements that DeepSpeed's ZeRO-0 reduces at a time


def bucket_size(trained: int) -> int:
    """Elements of weights that ZeRO-3 gathers at a time, and of gradients at most in a buffer."""
    return max(1, min(BUCKET, trained))


def reduced_at_once(config: RunConfig, trained: int) -> int:
    """Elements of the buffer in which gradients wait to be reduced.

    Where that goes on beside the backward, the last buffer's worth is left when the backward has ended, and
    nothing is hidden of what fits in one: so it is cut small.
    """
    strategy = config.strategy
    if strategy.kind == "single" or not strategy.overlaps:
        return bucket_size(trained)
    return min(bucket_size(trained), max(SMALLEST_BUCKET, -(-trained // OVERLAPPED_BUCKETS)))


def checkpoint_bytes(trained: int, target: int) -> int:
    """Of a checkpoint, over all ranks: masters and AdamW's two averages, and the target's average."""
    return 3 * FLOAT * trained + FLOAT * target


def adds_in_float32(plan: Plan) -> bool:
    """Whether gradients of a step's forwards are added up in float32 though they are bf16.

    ZeRO-1 cannot: there DeepSpeed adds them in bf16 (its float32 mode is another optimizer of its own, whose
    shards lie otherwise).
    """
    strategy = plan.config.strategy
    is_rounded = plan.config.train.precision == "bf16" and plan.micro_batches > 1
    return is_rounded and strategy.kind == "deepspeed" and strategy.zero_stage >= 2


@dataclass(frozen=True)
class Held:
    """Bytes of one rank.

    weights: run in the forward. master: float32 copies that the optimizer moves, where they are not the
    weights themselves. optimizer: AdamW's two averages. target: run in the forward. average: the target's
    float32 moving average. gradients: from a backward to the step. bucket: gradients that wait to be reduced,
    during a backward, in two buffers by turns where they are reduced beside it; copy: those that are being
    reduced. gathered: of weights in shards those that are run
    just now. offloaded: gradients on their way to an optimizer in host memory.
    on_host: names of what lies in host memory where there is a GPU. keeps_buffers: gradients and bucket are
    held at all times.
    """

    weights: int
    master: int
    optimizer: int
    target: int
    average: int
    gradients: int
    bucket: int
    copy: int = 0
    gathered: int = 0
    offloaded: int = 0
    on_host: tuple[str, ...] = ()
    keeps_buffers: bool = False

    @property
    def always(self) -> int:
        """Between steps, on device and host together."""
        state = self.weights + self.master + self.optimizer + self.target + self.average + self.offloaded
        return state + (self.gradients + self.bucket if self.keeps_buffers else 0)

    @property
    def most(self) -> int:
        """During a backward, on device and host together."""
        buffers = 0 if self.keeps_buffers else self.gradients + self.bucket
        return self.always + buffers + self.copy + self.gathered

    @property
    def host(self) -> int:
        """Of these in host memory."""
        return sum(int(getattr(self, name)) for name in self.on_host)


def held(plan: Plan, trained: int, target: int) -> Held:
    """What each rank of a run holds.

    trained, target: elements of the weights that are trained, and of the target encoder (0 where there is
    none of its own).
    """
    config, ranks = plan.config, plan.world_size
    strategy = config.strategy
    width = 2 if config.train.precision == "bf16" else FLOAT
    share = -(-trained // ranks)
    if strategy.kind == "single" or strategy.zero_stage == 0:  # the weights are their own masters
        return Held(
            weights=FLOAT * trained,
            master=0,
            optimizer=2 * FLOAT * trained,
            target=FLOAT * target,
            average=FLOAT * -(-target // ranks),
            gradients=FLOAT * trained,
            bucket=0,
            copy=0 if strategy.kind == "single" else FLOAT * min(trained, REPLICATED_BUCKET),
        )
    stage = strategy.zero_stage
    added = FLOAT if adds_in_float32(plan) else width
    is_offloaded = strategy.offload_optimizer
    reduced = reduced_at_once(config, trained)
    buffers = 2 if strategy.overlaps and stage < 3 else 1
    in_float32 = FLOAT if strategy.reduce_in_fp32 else 0  # beside the flat bf16 that it is made of
    on_host = ("master", "optimizer", "average", "offloaded") if is_offloaded else ()
    # ZeRO-1 and 2 cut all weights in a row, so some ranks hold nothing but the encoder's. A frozen target
    # is held in equal parts, for its checkpoint.
    is_cut = stage < 3 and config.target.kind == "ema"
    average = min(target, share) if is_cut else -(-target // ranks)
    return Held(
        weights=width * (share if stage == 3 else trained),
        master=FLOAT * share,
        optimizer=2 * FLOAT * share,
        target=width * (-(-target // ranks) if stage == 3 else target),
        average=FLOAT * average,
        gradients=(width * trained if stage == 1 and plan.micro_batches > 1 else added * share),
        bucket=buffers * width * reduced,
        copy=(width + in_float32) * reduced,
        gathered=width * bucket_size(trained) if stage == 3 else 0,
        offloaded=(FLOAT + (width if stage < 3 else 0)) * share * is_offloaded,
        on_host=on_host,
        keeps_buffers=stage == 3,
    )


def at_once(
    plan: Plan, held: Held, alive: Activations, trained: int, predictor: int, last: int
) -> dict[str, float]:
    """Bytes of a rank's device at each moment of a step, its activations with it.

    alive: of a micro-batch. predictor, last: weights whose gradients come first, and of those that are not
    there when the first block goes backward. The moments are those of `Activations`; `kept` is the end of a
    backward, `step` the optimizer's, at which health still holds the last forward's output.
    """
    base = held.always - held.host + alive.clips
    is_split = held.keeps_buffers  # ZeRO-3
    bucket = 0 if is_split else held.bucket
    before = held.gradients if plan.micro_batches > 1 and not is_split else 0
    added = 0 if is_split or before else held.gradients

    def there(weights: float) -> float:
        return before + added * weights / trained

    reducing = bucket + (held.copy if held.bucket else 0)
    return {
        "target": base + before + held.gathered + alive.target,
        "forward": base + before + held.gathered + alive.forward,
        "loss": base + before + bucket + held.gathered + alive.loss,
        "predictor": base + before + bucket + held.gathered + alive.predictor,
        "encoder": base + there(predictor) + reducing + held.gathered + alive.encoder,
        "first": base + there(trained - last) + reducing + held.gathered + alive.first,
        "kept": base + there(trained) + bucket + held.copy + held.gathered + alive.kept,
        "step": base + (0 if is_split else held.gradients) + alive.kept + _stepping(plan, trained),
    }


def _stepping(plan: Plan, trained: int) -> int:
    """What AdamW takes while it steps: a root of its second average, and gradients brought to float32."""
    strategy = plan.config.strategy
    if strategy.kind == "single" or strategy.zero_stage == 0:
        return FLOAT * trained
    if strategy.offload_optimizer:
        return 0
    brings = plan.config.train.precision == "bf16" and not adds_in_float32(plan)
    return FLOAT * -(-trained // plan.world_size) * (2 if brings else 1)
