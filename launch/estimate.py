"""`foreframe estimate`: what a run takes, before it is started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from launch.outline import num_parameters
from pretrain.config import DeepSpeedConfig, Plan, RunConfig, plan
from pretrain.flops import flops_a_clip
from pretrain.memory import Held, held

PARTS = {
    "weights": "weights",
    "master": "float32 masters",
    "optimizer": "AdamW's two averages",
    "target": "target, as it is run",
    "average": "target's average",
    "offloaded": "gradients for the host",
    "gradients": "gradients",
    "bucket": "gradients, gathered up",
    "copy": "gradients, being reduced",
    "gathered": "weights, gathered",
}


@dataclass(frozen=True)
class Column:
    """One way to train the run. is_own: the one that its config names."""

    name: str
    held: Held
    is_own: bool


@dataclass(frozen=True)
class Estimate:
    """Bytes of a rank, by how it is trained. trained, target: weights; forwards: of a rank a step.

    checkpoint: bytes of one, over all ranks. clips: of a step, over all ranks. flops: of a clip, forward and
    backward, the mean over masks; hardware_flops: with what is recomputed.
    """

    name: str
    precision: str
    ranks: int
    forwards: int
    trained: int
    target: int
    columns: tuple[Column, ...]
    checkpoint: int
    clips: int
    flops: float
    hardware_flops: float

    @property
    def flops_a_step(self) -> float:
        """Over all ranks."""
        return self.clips * self.flops

    def plain(self) -> dict[str, Any]:
        """For JSON: sums beside the parts."""
        found = asdict(self) | {"flops_a_step": self.flops_a_step}
        for column, plain in zip(self.columns, found["columns"], strict=True):
            plain["held"] |= {name: getattr(column.held, name) for name in ("always", "most", "host")}
        return found


def estimate(config: RunConfig, num_ranks: int) -> Estimate:
    """Work out what each ZeRO stage holds. Raises: ConfigError when the batch cannot be split so."""
    laid_out = plan(config, num_ranks)
    sizes = num_parameters(config)
    frozen = config.objective.kind == "action_latent"
    trained = sizes["predictor"] + (0 if frozen else sizes["encoder"])
    target = 0 if config.target.kind == "online" else sizes["encoder"]
    a_clip = flops_a_clip(config)
    return Estimate(
        name=config.name,
        precision=config.train.precision,
        ranks=num_ranks,
        forwards=laid_out.micro_batches,
        trained=trained,
        target=target,
        columns=tuple(_columns(laid_out, trained, target)),
        checkpoint=12 * trained + 4 * target,
        clips=config.train.global_batch,
        flops=a_clip.model,
        hardware_flops=a_clip.hardware,
    )


def _columns(laid_out: Plan, trained: int, target: int) -> list[Column]:
    config, own = laid_out.config, laid_out.config.strategy
    found = []
    if own.kind == "single":
        found.append(Column("one process", held(laid_out, trained, target), is_own=True))
    offloads = own.kind == "deepspeed" and own.offload_optimizer
    first = 1 if config.train.precision == "bf16" or offloads else 0
    for stage in range(first, 4):
        strategy = DeepSpeedConfig.model_validate({"zero_stage": stage, "offload_optimizer": offloads})
        other = Plan(
            config.model_copy(update={"strategy": strategy}), laid_out.world_size, laid_out.micro_batches
        )
        is_own = own.kind == "deepspeed" and own.zero_stage == stage
        found.append(Column(f"ZeRO-{stage}", held(other, trained, target), is_own))
    return found


def operations(count: float) -> str:
    """Such as 5.09 TFLOP, 15.6 PFLOP."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"


def _work(found: Estimate) -> list[str]:
    """What a clip and a step compute."""
    each = f", {operations(found.flops_a_step / found.ranks)} a rank" if found.ranks > 1 else ""
    told = [
        f"A clip takes {operations(found.flops)} forward and backward, a step of {found.clips:,} clips "
        f"{operations(found.flops_a_step)}{each}."
    ]
    if found.hardware_flops > found.flops:
        again = operations(found.hardware_flops)
        told.append(f"On the device {again} a clip: strategy.activation_checkpointing computes blocks again.")
    return told


def lines(found: Estimate) -> list[str]:
    """As a table for people; GB are 10⁹ bytes."""
    is_large = max(column.held.most for column in found.columns) >= 1e9
    unit, divisor = ("GB", 1e9) if is_large else ("MB", 1e6)
    forwards = f"{found.forwards} forward{'' if found.forwards == 1 else 's'} a step"
    told = [
        f"{found.name}: {found.trained / 1e6:,.1f} M weights trained, {found.target / 1e6:,.1f} M in the "
        f"target; {found.precision}, {found.ranks} rank{'' if found.ranks == 1 else 's'}, {forwards}",
        "",
    ]
    heads = [column.name + (" *" if column.is_own else "") for column in found.columns]
    width = max(12, *(len(head) + 2 for head in heads))

    def row(label: str, cells: list[str]) -> str:
        return f"{label:<26}" + "".join(f"{cell:>{width}}" for cell in cells)

    def sums(label: str, name: str) -> str:
        return row(label, [f"{getattr(column.held, name) / divisor:.2f}" for column in found.columns])

    told.append(row(f"{unit} a rank", heads))
    for part, label in PARTS.items():
        numbers = [int(getattr(column.held, part)) for column in found.columns]
        if any(numbers):
            cells = [f"{number / divisor:.2f}" if number else "—" for number in numbers]
            told.append(row(f"  {label}", cells))
    told += [sums("between steps", "always"), sums("during a backward", "most")]
    if any(column.held.host for column in found.columns):
        told.append(sums("  of it in host memory", "host"))
    whole, share = found.checkpoint / divisor, found.checkpoint / found.ranks / divisor
    per = [f"{column.held.most / found.trained:.1f}" for column in found.columns]
    told += [
        row("bytes a trained weight", per),
        "",
        f"* as configured. A checkpoint is {whole:.2f} {unit} over all ranks; while it is",
        f"written each rank holds its share, {share:.2f} {unit}, in host memory once more.",
        "Not counted: activations, which go with clips, masks and strategy.activation_checkpointing, and",
        "what libraries and allocators take for themselves.",
        "",
        *_work(found),
    ]
    return told
