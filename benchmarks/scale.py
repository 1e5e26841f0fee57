"""The numbers of docs/scale.md: ViT-g on 512 H100s, from `foreframe estimate` alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from launch.config import read_config
from launch.estimate import Estimate, Stated, estimate, gpu_of
from launch.estimate.constants import constants
from launch.estimate.memory import Weights, clips_that_fit, fewest_that_fit, recomputing
from launch.estimate.stated import FAILURES, MFU, RESTART_S
from launch.estimate.units import bytes_of, duration, operations, percent
from launch.outline import num_parameters
from pretrain.config import RunConfig, plan
from pretrain.recompute import share_again

CONFIG = "configs/train/vjepa2-vitg16.yaml"
NODES, GPUS = 64, 8
PRICE = 2.5  # dollars a GPU hour: assumed
AS_PUBLISHED = ("train.micro_batch=6",)
OVERLAPPED = (*AS_PUBLISHED, "strategy.overlap_comm=true")
AS_ADVISED = (*AS_PUBLISHED, "strategy.activation_checkpointing=false")


@cache
def worked_out(
    changed: tuple[str, ...] = AS_PUBLISHED, nodes: int = NODES, gpus: int = GPUS, **stated: Any
) -> Estimate:
    """The run on `nodes` of so many H100s, with these settings laid over its config."""
    network = stated.pop("network_gbit", None)
    config = read_config(CONFIG, list(changed), RunConfig)
    return estimate(config, Stated(gpu_of("h100", None, None, network), nodes, gpus, price=PRICE, **stated))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def run_table() -> str:
    """What the run is, and what it comes to."""
    found = worked_out()
    rows = [
        ["weights trained, of the target", f"{found.weights.trained / 1e6:,.0f} M, "
         f"{found.weights.target / 1e6:,.0f} M"],
        ["a step", f"{found.clips:,} clips = {found.ranks} ranks × {found.forwards} forward × "
         f"{found.micro_batch} clips"],
        ["a clip, forward and backward", operations(found.flops)],
        ["a step", f"{operations(found.flops_a_step)}, {operations(found.flops_a_step / found.ranks)} a GPU"],
        ["a step takes", f"{duration(found.speed.step_s)}: {found.speed.clips_per_s:,.0f} clips/s"],
        [f"{found.steps:,} steps", f"{found.days:.2f} days, {found.gpu_hours:,.0f} GPU hours, "
         f"${found.cost:,.0f} at ${PRICE:g} (assumed)"],
    ]  # fmt: skip
    return markdown(["as published, micro-batch 6", ""], rows)


def parts_table() -> str:
    found = worked_out()
    rows = [
        [name, operations(part.model * found.clips), percent(part.model / found.flops)]
        for name, part in found.parts.items()
    ]
    return markdown(["a step's FLOPs", "", "share"], rows)


def time_table() -> str:
    """What a step waits for, and how that moves with the number of GPUs."""
    rows = []
    for nodes in (1, 4, 16, 32, 64, 128):
        micro = 3 if nodes == 128 else 6
        found = worked_out((f"train.micro_batch={micro}",), nodes)
        speed = found.speed
        rows.append(
            [
                f"{found.ranks:,}",
                f"{found.clips // found.ranks}",
                duration(speed.compute_s),
                duration(speed.network_s),
                duration(speed.loader_s),
                duration(speed.storage_s),
                duration(speed.step_s),
                percent(speed.network_s / speed.step_s),
                f"{found.gpu_hours:,.0f}",
            ]
        )
    heads = ["GPUs", "clips a GPU", "computing", "network", "loader, beside it", "storage, beside it"]
    return markdown([*heads, "a step", "of it network", "GPU hours"], rows)


def memory_table() -> str:
    published, advised = worked_out(), worked_out(AS_ADVISED)
    rows = []
    for again, kept in zip(published.columns, advised.columns, strict=True):
        rows.append(
            [
                again.name,
                f"{again.held.always / 1e9:.1f}",
                f"{again.most / 1e9:.1f}",
                f"{kept.most / 1e9:.1f}",
                f"{again.room_recomputing:,}",
                f"{again.room:,}",
            ]
        )
    heads = ["GB a rank", "between steps", "at most, blocks again", "at most, all kept"]
    table = markdown([*heads, "clips that fit, again", "clips that fit, kept"], rows)
    own, saves = published.speed, published.hardware_flops / published.flops
    words = (
        f"\n\n{published.stated.usable / 1e9:.0f} GB of 80 are counted as usable. Computing blocks again "
        f"takes {percent(saves - 1)} more operations: a GPU that does as many a second either way computes "
        f"for {duration(own.compute_s / saves)} without it, for {duration(own.compute_s)} with it."
    )
    return table + words


def network_table() -> str:
    """What a rank sends, by stage; and what a faster network or more clips a step would change."""
    found = worked_out()
    rows = []
    for column, sends, speed in zip(found.columns, found.sends, found.speeds, strict=True):
        parts = (sends.gradients, sends.weights, sends.target, sends.total)
        told = [bytes_of(part) for part in parts]
        rows.append([column.name, *told, duration(speed.network_s), duration(speed.step_s)])
    heads = ["a rank sends", "gradients", "weights", "target", "all", "takes", "the step"]
    other = [["as it is", *_network_cells(found)]]
    other += [["`strategy.overlap_comm=true`", *_network_cells(worked_out(OVERLAPPED))]]
    both = (*OVERLAPPED, "strategy.reduce_in_fp32=true")
    other += [["the same, gradients in float32", *_network_cells(worked_out(both))]]
    other += [
        [f"{gbit} Gbit/s a GPU", *_network_cells(worked_out(network_gbit=float(gbit)))]
        for gbit in (100, 200, 800)
    ]
    more = {
        batch: (f"train.global_batch={batch}", f"train.micro_batch={batch // 512}")
        for batch in (6144, 12_288)
    }
    other += [[f"{batch:,} clips a step", *_network_cells(worked_out(more[batch]))] for batch in more]
    heads_then = ["", "computing", "network", "of it beside computing", "a step", "clips/s"]
    second = markdown(heads_then, other)
    return markdown(heads, rows) + "\n\n" + second


def _network_cells(found: Estimate) -> list[str]:
    speed = found.speed
    return [
        duration(speed.compute_s),
        duration(speed.network_s),
        duration(speed.hidden_s) if speed.hidden_s else "nothing",
        duration(speed.step_s),
        f"{speed.clips_per_s:,.0f}",
    ]


def scaling_table() -> str:
    """Strong scaling, the batch as it is, and weak scaling, 6 clips a GPU, with and without overlap."""
    strong, weak = [], []
    for gpus in (1, 8, 64, 256, 512, 1024):
        nodes, each = -(-gpus // GPUS), min(gpus, GPUS)
        for rows, clips in ((strong, 3072 // gpus), (weak, 6)):
            micro = min(6, clips)
            changed = (f"train.micro_batch={micro}", f"train.global_batch={clips * gpus}")
            found = [
                worked_out((*changed, f"strategy.overlap_comm={way}"), nodes, each)
                for way in ("false", "true")
            ]
            cells = [f"{one.speed.clips_per_s:,.0f} | {percent(_efficiency(one))}" for one in found]
            rows.append([f"{gpus:,}", f"{clips:,}", f"{clips * gpus:,}", *cells])
    heads = [
        "GPUs",
        "clips a GPU",
        "a step",
        "clips/s",
        "of GPUs alone",
        "overlapped: clips/s",
        "of GPUs alone",
    ]
    return (
        "Strong scaling, the same batch:\n\n" + markdown(heads, strong)
        + "\n\nWeak scaling, the same clips on each:\n\n" + markdown(heads, weak)
        + "\n\n*Of GPUs alone*: of the clips that as many GPUs would take that send nothing."
    )  # fmt: skip


def _efficiency(found: Estimate) -> float:
    return found.speed.compute_s / found.speed.step_s


def constants_table() -> str:
    rows = [
        [
            each.what,
            each.value,
            each.origin,
            each.source,
            each.option.replace("--", "`--", 1) + "`" * bool(each.option),
        ]
        for each in constants()
    ]
    lines = ["| constant | value | | source | stated by |", "|---|---:|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def data_table() -> str:
    found = worked_out()
    rows = [
        [
            each.encoding,
            f"{each.cpu_ms:.3g} ms",
            f"{each.cores:,.0f}",
            f"{each.cores / found.stated.nodes:.2g}",
            bytes_of(each.bytes_a_clip),
            f"{bytes_of(each.bytes_per_s)}/s",
            f"{bytes_of(each.bytes_per_s / found.stated.nodes)}/s",
        ]
        for each in found.loadings
    ]
    heads = ["clips as", "CPU of a clip", "cores, all", "cores a node", "bytes of a clip", "read, all"]
    most = found.loadings[0]
    words = (
        f"\n\nFor {found.speed.clips_per_s:,.0f} clips/s. The {found.workers} workers of a rank could decode "
        f"{most.clips_per_s:,.0f} mp4 clips/s, and it takes {found.speed.clips_per_s / found.ranks:.1f}: "
        f"{math.ceil(most.cores / found.ranks)} would do on paper; a second takes the peaks."
    )
    return markdown([*heads, "read, a node"], rows) + words


def failures_table() -> str:
    rows = []
    for name, rate in (("a tenth", FAILURES / 10), ("Llama 3's", FAILURES), ("ten times", 10 * FAILURES)):
        saves = worked_out(failures=rate).saving
        rows.append(
            [
                f"{name}, {rate:.2g} of a node a day",
                duration(saves.between_failures_s),
                duration(saves.every_s),
                f"{saves.every_steps:,}",
                percent(saves.lost),
                percent(saves.lost_own),
            ]
        )
    found = worked_out()
    heads = ["failures", "one every", "save every", "steps", "lost", "lost, saving every 1,000 steps"]
    words = (
        f"\n\nA checkpoint is {bytes_of(found.saving.size)}, {bytes_of(found.saving.size / found.ranks)} a "
        f"rank; it holds training up for {duration(found.saving.held_up_s)} and is written in "
        f"{duration(found.saving.written_s)} at {bytes_of(found.stated.storage)}/s. A restart is taken to "
        f"cost {RESTART_S:.0f} s."
    )
    return markdown(heads, rows) + words


def mfu_table() -> str:
    rows = []
    for mfu in (0.2, 0.3, MFU, 0.5):
        found = worked_out(mfu=mfu)
        peak = found.stated.gpu.peak(found.precision)
        seen = found.flops_a_step / found.ranks / found.speed.step_s / peak
        rows.append(
            [
                percent(mfu),
                duration(found.speed.compute_s),
                duration(found.speed.step_s),
                percent(seen),
                f"{found.days:.2f}",
                f"{found.gpu_hours:,.0f}",
                f"{found.cost:,.0f}",
                found.speed.binds,
            ]
        )
    heads = ["MFU while it computes", "computing", "a step", "MFU of the step", "days", "GPU hours", "$"]
    return markdown([*heads, "what takes most"], rows)


def micro_batch_table() -> str:
    """Clips of a forward on 80 GB, by model, GPUs and stage; and what is computed again so that 24 fit."""
    rows = []
    for name, (config, predictor) in MODELS.items():
        found = [
            [f"{gpus}", f"{stage}", *_row_of(config, gpus, stage)]
            for gpus in (1, 8, 64)
            for stage in (1, 2, 3)
        ]
        rows += [[f"{name}, {predictor}", *cells] for cells in _said_once(found)]
    heads = ["model", "GPUs", "ZeRO", "all kept: clips", "all again: clips", "more operations"]
    told = [*heads, f"as few as fit at {AT_CLIPS} clips", "more operations"]
    words = (
        "Computed, not measured on a GPU: clips of 16 frames of 256² in bf16, one forward a step, 72 GB of",
        "80 counted as usable; operations of the largest micro-batch that masks may draw. `+ n MLPs`:",
        "blocks of which only the inside of the MLP is computed again. With as few as fit, as many clips",
        "fit as with all.",
    )
    return f"{markdown(told, rows)}\n\n{' '.join(words)}"


def _said_once(rows: list[list[str]]) -> list[list[str]]:
    """Rows of GPUs, stage, two counts of clips and the rest: in one row where only counts differ, else stages
    that agree in all of it together.
    """
    gpus, stages, kept, again = ([row[place] for row in rows] for place in range(4))
    if len({tuple(row[4:]) for row in rows}) == 1:
        return [[_span(gpus), _span(stages), _span(kept), _span(again), *rows[0][4:]]]
    found: list[list[str]] = []
    for row in rows:
        if found and found[-1][0] == row[0] and found[-1][2:] == row[2:]:
            found[-1][1] += f", {row[1]}"
        else:
            found.append(list(row))
    return found


def _span(numbers: list[str]) -> str:
    least, most = min(map(int, numbers)), max(map(int, numbers))
    return f"{least}" if least == most else f"{least} to {most}"


MODELS = {
    "ViT-L": ("configs/train/vjepa2-vitl16.yaml", "24 blocks"),
    "ViT-H": ("configs/train/vjepa2-vith16.yaml", "32 blocks"),
    "ViT-g": ("configs/train/vjepa2-vitg16.yaml", "40 blocks"),
}
AT_CLIPS = 24  # the recipes' micro-batch


@cache
def _row_of(file: str, gpus: int, stage: int) -> list[str]:
    more = [
        f"train.global_batch={AT_CLIPS * gpus}",
        f"train.micro_batch={AT_CLIPS}",
        f"strategy.zero_stage={stage}",
    ]
    config = read_config(file, more, RunConfig)
    nodes, each = max(1, gpus // GPUS), min(gpus, GPUS)
    stated = Stated(gpu_of("h100", None, None, None), nodes, each)
    sizes = num_parameters(config)
    weights = Weights(sum(sizes.values()), sizes["predictor"], sizes["encoder"])
    kept, again = (
        clips_that_fit(plan(recomputing(config, each), gpus), stated.usable, weights, "cuda")
        for each in (False, True)
    )
    fewest = fewest_that_fit(config, gpus, AT_CLIPS, stated.usable, weights, "cuda")
    few = ["does not fit", "—"]
    if fewest is not None:
        blocks = fewest.blocks.removeprefix("computed again: ")
        few = [blocks, percent(fewest.share) if fewest.share else "none"]
    return [f"{kept:,}", f"{again:,}", percent(share_again(recomputing(config, True))), *few]


SCALE: dict[str, Callable[[], str]] = {
    "scale-run": run_table,
    "scale-parts": parts_table,
    "scale-time": time_table,
    "scale-memory": memory_table,
    "scale-network": network_table,
    "scale-data": data_table,
    "scale-scaling": scaling_table,
    "scale-constants": constants_table,
    "scale-failures": failures_table,
    "scale-mfu": mfu_table,
    "scale-micro-batch": micro_batch_table,
}
