"""A profile as text: what a step's time went into, narrow enough for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 0.0005  # of the step; parts below are left out
APART = 1.2  # a rank that takes so many times as long as the fastest is named
SAID = 0.01  # of the step, by which it must be slower too


def table_text(facts: Mapping[str, Any]) -> str:
    """Of the first rank, and where others differ.

    facts: as in table.json: `ranks` holds a `Profiled` of each that was recorded.
    """
    ranks = facts["ranks"]
    first = ranks[0]
    last_step = facts["first_step"] + first["num_steps"] - 1
    several = facts["first_step"] != last_step
    steps = f"steps {facts['first_step']} to {last_step}, means" if several else f"step {last_step}"
    lines = [
        f"profile of {steps}: rank {first['rank']} of {facts['world_size']}, {facts['clips_a_rank']} clips a "
        f"step, {facts['precision']}, {facts['device']}",
        "",
        *_parts(first, facts["peak_tflops"]),
    ]
    lines += ["", *(f"  {fact}" for fact in _facts(first))] if _facts(first) else []
    lines += ["", *_ranks(ranks)] if len(ranks) > 1 else []
    lines += ["", *_operators(first)]
    return "\n".join(line.rstrip() for line in lines)


def _parts(found: Mapping[str, Any], peak: float | None) -> list[str]:
    step_ms, has_gpu = found["step_ms"], found["gpu_busy"] is not None
    heads = ["ms", "share", "GFLOP", "GFLOP/s"]
    if has_gpu:
        heads = ["host ms", "share", "GPU ms", "share", "kernels", "syncs", "TFLOP/s", "MFU"]
    rows = [
        [part["name"], *_cells(part, step_ms, peak, has_gpu)]
        for part in found["parts"]
        if max(part["host_ms"], part["gpu_ms"]) > SHOWN * step_ms
    ]
    gpu_ms = sum(part["gpu_ms"] for part in found["parts"])
    whole = {"host_ms": step_ms, "gpu_ms": gpu_ms, "gflop": found["step_gflop"] or None}
    whole |= {key: sum(part[key] for part in found["parts"]) for key in ("kernels", "syncs")}
    rows.append(["the step", *_cells(whole, step_ms, peak, has_gpu, is_whole=True)])
    return _aligned(["", *heads], rows)


def _cells(
    part: Mapping[str, Any], step_ms: float, peak: float | None, has_gpu: bool, *, is_whole: bool = False
) -> list[str]:
    host = [_number(part["host_ms"]), f"{100 * part['host_ms'] / step_ms:.1f} %"]
    gflop = part["gflop"]
    took_ms = part["gpu_ms"] if has_gpu and not is_whole else part["host_ms"]
    rate = gflop / took_ms if gflop is not None and took_ms else None  # GFLOP a ms is TFLOP/s
    if not has_gpu:
        return [
            *host,
            "" if gflop is None else _number(gflop),
            "" if rate is None else _number(1e3 * rate),
        ]
    return [
        *host,
        _number(part["gpu_ms"]),
        f"{100 * part['gpu_ms'] / step_ms:.1f} %",
        f"{part['kernels']:.0f}",
        f"{part['syncs']:.3g}",
        "" if rate is None else _number(rate),
        "" if rate is None or peak is None else f"{100 * rate / peak:.0f} %",
    ]


def _facts(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if found["gpu_busy"] is not None:
        lines.append(f"GPU busy {100 * found['gpu_busy']:.1f} % of the time")
    if found["syncs"]:
        named = ", ".join(f"{name} {count:.3g}" for name, count in found["syncs"].items())
        lines.append(f"the host waited for the GPU in: {named}")
    if found["collectives"]:
        lines.append(
            f"collectives: {found['collectives']:.3g} a step, {_number(found['collective_ms'])} ms, of which "
            f"{_number(found['exposed_ms'])} ms with nothing computed beside"
        )
    return lines


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """In which parts ranks differ; one that waits for others is slow where collectives are."""
    step_ms, key = ranks[0]["step_ms"], "gpu_ms" if ranks[0]["gpu_busy"] is not None else "host_ms"
    rows = []
    for place, part in enumerate(ranks[0]["parts"]):
        each = [rank["parts"][place][key] for rank in ranks]
        if max(each) > APART * min(each) and max(each) - min(each) > SAID * step_ms:
            fastest, slowest = each.index(min(each)), each.index(max(each))
            rows.append([part["name"],
                         _number(min(each)), str(ranks[fastest]["rank"]),
                         _number(max(each)), str(ranks[slowest]["rank"])])  # fmt: skip
    if not rows:
        return [f"  the {len(ranks)} ranks recorded differ in no part by more than a fifth"]
    return _aligned(["where ranks differ", "least ms", "rank", "most ms", "rank"], rows)


def _operators(found: Mapping[str, Any]) -> list[str]:
    has_gpu = found["gpu_busy"] is not None
    rows = []
    for each in found["operators"]:
        share = f"{100 * each['ms'] / found['step_ms']:.1f} %"
        rows.append([_short(each["name"]), f"{each['calls']:.3g}", _number(each["ms"]), share])
    return _aligned(["most GPU time in" if has_gpu else "most time in", "calls", "ms", "share"], rows)


def _short(name: str, width: int = 60) -> str:
    """Cut in the middle: names tell forward from backward, and one size from another, at their ends."""
    name = name.removeprefix("void ")
    end = width // 3
    return name if len(name) <= width else f"{name[: width - end - 1]}…{name[-end:]}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else "0"


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [heads, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(heads))]
    return [
        "  " + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]  # fmt: skip
