"""An estimate as tables and sentences for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from launch.estimate.gpus import ASSUMED_NETWORK
from launch.estimate.saving import DAY_S
from launch.estimate.stated import AGREE_S, FAILURES, FREE_SHARE, HOST_COPY, LINE_SHARE, RESTART_S
from launch.estimate.units import bytes_of, duration, operations, percent, short
from launch.estimate.whole import Estimate

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
MOMENTS = {
    "target": "target reads",
    "forward": "forward ends",
    "loss": "loss back",
    "predictor": "predictor back",
    "encoder": "encoder back",
    "first": "first block back",
    "kept": "backward ends",
    "step": "AdamW steps",
}


def lines(found: Estimate) -> list[str]:
    """Everything, in the order in which one asks; GB are 10⁹ bytes."""
    sections = (_head, _work, _memory, _micro_batches, _network, _loading, _run, _saving, _what_if, _assumed)
    told: list[str] = []
    for section in sections:
        told += [*section(found), ""]
    return told[:-1]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], first: int = 28) -> Iterator[str]:
    """Columns to the right of a label; as wide as what stands in them."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[number]) for row in [list(heads), *rows]) + 2 for number in range(1, len(heads))]
    label = max(first, *(len(row[0]) for row in [list(heads), *rows]))
    for row in [list(heads), *rows]:
        cells = "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        yield f"{row[0]:<{label}}{cells}".rstrip()


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _head(found: Estimate) -> Iterator[str]:
    stated = found.stated
    yield (
        f"{found.name}: {found.weights.trained / 1e6:,.1f} M weights trained, "
        f"{found.weights.target / 1e6:,.1f} M in the target; {found.precision}, "
        f"{_count(found.ranks, 'rank')}, {_count(found.forwards, 'forward')} a step"
    )
    split = " × ".join(
        (
            _count(found.ranks, "rank"),
            _count(found.forwards, "forward"),
            _count(found.micro_batch, "clip"),
        )
    )
    where = f"{_count(stated.nodes, 'node')} × {stated.gpus_per_node} {stated.gpu.name}"
    yield f"on {where}, on paper: nothing was run; {found.clips:,} clips a step ="
    yield f"{split}"


def _work(found: Estimate) -> Iterator[str]:
    recomputed = found.hardware_flops > found.flops
    heads = ["FLOPs, forward and backward", "a clip", "a step", "share", *(["again"] if recomputed else [])]
    rows = [
        [
            f"  {name}",
            operations(part.model),
            operations(part.model * found.clips),
            percent(part.model / found.flops),
            *([operations(part.recomputed) if part.recomputed else "—"] if recomputed else []),
        ]
        for name, part in found.parts.items()
    ]
    whole = ["all", operations(found.flops), operations(found.flops_a_step), ""]
    if recomputed:
        whole.append(operations(found.hardware_flops - found.flops))
    yield from table(heads, [*rows, whole])
    each = f", {operations(found.flops_a_step / found.ranks)} a rank" if found.ranks > 1 else ""
    yield (
        f"A clip takes {operations(found.flops)} forward and backward, a step of {found.clips:,} clips "
        f"{operations(found.flops_a_step)}{each}."
    )
    if recomputed:
        again = operations(found.hardware_flops)
        yield f"On the device {again} a clip (strategy.activation_checkpointing):"
        yield f"  {found.again}."


def _memory(found: Estimate) -> Iterator[str]:
    columns, usable = found.columns, found.stated.usable
    is_large = max(column.most for column in columns) >= 1e9
    unit, divisor = ("GB", 1e9) if is_large else ("MB", 1e6)

    def row(label: str, numbers: Iterable[float]) -> list[str]:
        return [label, *(_size(number / divisor) for number in numbers)]

    heads = [f"{unit} a rank", *(column.name + (" *" if column.is_own else "") for column in columns)]
    rows = [
        row(f"  {label}", numbers)
        for part, label in PARTS.items()
        if any(numbers := [int(getattr(column.held, part)) for column in columns])
    ]
    rows.append(row("  activations, at their most", [column.activations for column in columns]))
    rows.append(row("between steps", [column.held.always for column in columns]))
    if any(column.held.host for column in columns):
        rows.append(row("  of it in host memory", [column.held.host for column in columns]))
    rows.append(row("all at once, at the most", [column.most for column in columns]))
    rows.append(["  which is when", *(MOMENTS[_moment(column.moments)] for column in columns)])
    fits = ["fits" if column.most <= usable else f"{column.most / usable:.1f} ×" for column in columns]
    rows.append([f"of {usable / divisor:,.0f} {unit} usable", *fits])
    yield from table(heads, rows)
    whole, share = found.checkpoint / divisor, found.checkpoint / found.ranks / divisor
    yield f"* as configured. A checkpoint is {whole:.2f} {unit} over all ranks; while it is"
    yield f"written each rank holds its share, {share:.2f} {unit}, in host memory once more."
    yield "Gradients and activations are not at their most in the same moment."


def _size(number: float) -> str:
    if number == 0:
        return "—"
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def _moment(moments: dict[str, float]) -> str:
    return max(moments, key=lambda name: moments[name])


def _micro_batches(found: Estimate) -> Iterator[str]:
    def cell(number: int) -> str:
        return f"{number:,}" if number else "none fits"

    clips = found.clips // found.ranks
    columns = found.columns
    heads = ["largest micro-batch", *(column.name for column in columns)]
    yield from table(
        heads,
        [
            ["  all activations kept", *(cell(column.micro_batch) for column in columns)],
            ["    clips that would fit", *(f"{column.room:,}" for column in columns)],
            ["  blocks computed again", *(cell(column.micro_batch_recomputing) for column in columns)],
            ["    clips that would fit", *(f"{column.room_recomputing:,}" for column in columns)],
        ],
    )
    yield f"The largest train.micro_batch that fits and divides the {_count(clips, 'clip')} of a rank a step."
    yield from _fewest(found)


def _fewest(found: Estimate) -> Iterator[str]:
    """What `auto` would do at each stage, columns that agree together."""
    told: dict[str, list[str]] = {}
    for column in found.columns:
        words = "does not fit"
        if column.fewest is not None:
            asked = math.ceil(column.fewest.activations / 1e8) / 10
            words = column.fewest.blocks
            if column.fewest.share:
                more = percent(column.fewest.share)
                words += f"\n    {more} more operations; activation_memory={asked:.1f}GB"
        told.setdefault(words, []).append(column.name)
    clips = _count(found.micro_batch, "clip")
    yield f"As few blocks again as fit with {clips} (strategy.activation_checkpointing=auto):"
    for words, names in told.items():
        yield from f"  {', '.join(names)}: {words}".splitlines()


def _network(found: Estimate) -> Iterator[str]:
    if found.ranks == 1:
        yield "One rank sends nothing."
        return
    heads = ["a rank sends a step", *(column.name for column in found.columns)]
    rows = []
    for part, label in (
        ("gradients", "gradients, summed"),
        ("weights", "weights, gathered"),
        ("target", "target, gathered"),
    ):
        numbers = [float(getattr(each, part)) for each in found.sends]
        rows.append([f"  {label}", *(bytes_of(number) if number else "—" for number in numbers)])
    rows.append(["all", *(bytes_of(each.total) for each in found.sends)])
    rows.append(["takes", *(duration(each.network_s) for each in found.speeds)])
    rows.append(["computing takes", *(duration(each.compute_s) for each in found.speeds)])
    rows.append(["of sending, beside it", *(duration(each.hidden_s) for each in found.speeds)])
    yield from table(heads, rows)
    stated = found.stated
    where = "inside a node" if stated.nodes == 1 else "between nodes"
    yield (
        f"At {stated.bandwidth / 1e9:.3g} GB/s a GPU {where}, {percent(LINE_SHARE)} of the line rate "
        f"(assumed); latency is not counted."
    )


def _loading(found: Estimate) -> Iterator[str]:
    heads = ["loader", *(each.encoding for each in found.loadings)]
    ranks, nodes = found.ranks, found.stated.nodes
    rows = [
        ["  CPU of a clip", *(f"{each.cpu_ms:.3g} ms" for each in found.loadings)],
        ["  cores, all nodes", *(f"{each.cores:,.3g}" for each in found.loadings)],
        ["  cores a rank", *(f"{each.cores / ranks:,.2g}" for each in found.loadings)],
        ["  bytes of a clip", *(bytes_of(each.bytes_a_clip) for each in found.loadings)],
        ["  read, all nodes", *(f"{bytes_of(each.bytes_per_s)}/s" for each in found.loadings)],
        ["  read, a node", *(f"{bytes_of(each.bytes_per_s / nodes)}/s" for each in found.loadings)],
    ]
    yield from table(heads, rows)
    most = found.loadings[0].clips_per_s
    yield (
        f"For {short(found.speed.clips_per_s)} clips/s, {short(found.speed.clips_per_s / ranks)} a rank, "
        f"whose {_count(found.workers, 'worker')} (data.workers) could decode {short(most)} of mp4."
    )
    yield "CPU and bytes were measured on an AMD EPYC (benchmarks/results/loader.json, shard.json), and are"
    yield "taken to grow with a clip's seconds and pixels."


def _run(found: Estimate) -> Iterator[str]:
    stated, own = found.stated, found.speed
    yield (
        f"A step takes {duration(own.step_s)}: {short(own.clips_per_s)} clips/s, "
        f"{short(own.clips_per_s / found.ranks)} a rank. What binds: {own.binds}."
    )
    peak = stated.gpu.peak(found.precision)
    seen = found.flops_a_step / found.ranks / own.step_s / peak
    yield (
        f"While it computes it gets {percent(stated.mfu)} of {peak / 1e12:,.4g} TFLOP/s (--mfu); "
        f"over the whole step {percent(seen)}."
    )
    cost = "" if found.cost is None else f", ${found.cost:,.0f} at ${stated.price:g} a GPU hour"
    yield (
        f"{_count(found.steps, 'step')} take {duration(DAY_S * found.days)}, {short(found.gpu_hours)} GPU "
        f"hours{cost}, failures and saves in it."
    )


def _saving(found: Estimate) -> Iterator[str]:
    saves, stated = found.saving, found.stated
    yield (
        f"A checkpoint of {bytes_of(saves.size)} holds training up for {duration(saves.held_up_s)}, and is "
        f"written in {duration(saves.written_s)} at {bytes_of(stated.storage)}/s."
    )
    if math.isinf(saves.between_failures_s):
        yield "No failures are expected (--failures 0)."
        return
    yield (
        f"A failure every {duration(saves.between_failures_s)}: {stated.failures:.4g} of a node a day × "
        f"{_count(stated.nodes, 'node')} (--failures)."
    )
    yield (
        f"Least is lost, {percent(saves.lost)} of the time, by saving every {duration(saves.every_s)}: "
        f"train.checkpoint_every={saves.every_steps}."
    )
    yield f"At {found.saves_every:,}, as configured, {percent(saves.lost_own)} are lost."


def _what_if(found: Estimate) -> Iterator[str]:
    priced = found.stated.price is not None
    heads = ["GPUs, the same batch", "clips", "a step", "clips/s", "the run", "GPU hours"]
    heads += ["$"] * priced + ["lost", "binds"]
    rows = []
    for each in found.what_if:
        label = f"  {each.gpus:,}" + (" *" if each.gpus == found.ranks else "")
        if each.problem is not None:
            rows.append([label, *("—" for _ in heads[1:-1]), each.problem])
            continue
        row = [
            label,
            f"{each.micro_batch:,}",
            duration(each.step_s or 0.0),
            short(each.clips_per_s or 0.0),
            duration(DAY_S * (each.days or 0.0)),
            short(each.gpu_hours or 0.0),
        ]
        row += [f"{each.cost:,.0f}"] if each.cost is not None else []
        rows.append([*row, percent(each.lost or 0.0), each.binds or ""])
    yield from table(heads, rows)
    yield "With failures, and saves as often as is best. clips: of a forward, as configured or what fits."


def _assumed(found: Estimate) -> Iterator[str]:
    stated = found.stated
    device = stated.gpu.device
    yield "Stated or assumed, not measured here:"
    if device == "cuda":
        yield f"  {percent(FREE_SHARE)} of a GPU's memory is left to CUDA, NCCL and the allocator."
    yield f"  A save copies at {bytes_of(HOST_COPY)}/s to host memory, ranks agree in {duration(AGREE_S)}."
    network = "assumed" if stated.gpu.name in ASSUMED_NETWORK else "the maker's"
    yield f"  {stated.gpu.name}: {bytes_of(stated.gpu.network)}/s to other nodes ({network}; --network)."
    yield f"  A restart takes {RESTART_S:.0f} s. Failures: {FAILURES:.4f} of a node a day is Llama 3's,"
    yield "  419 in 54 days of 2,048 nodes (arXiv:2407.21783, sec. 3.3.4)."
    yield "Memory agrees with live tensors within 10 % on CPU (tests/pretrain/test_activations.py); the most"
    yield "clips that fit an H100 took 12 to 17 % less than is said (docs/speed/memory.md)."
