"""Every figure that an estimate rests on and that is not counted: its value, and where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from launch.estimate.gpus import ASSUMED_NETWORK, CPU_NETWORK, GPUS
from launch.estimate.loading import BYTES, CPU_MS, CPU_MS_FLOATS
from launch.estimate.stated import (
    AGREE_S,
    FAILURES,
    FREE_SHARE,
    HIDDEN_SHARE,
    HOST_COPY,
    LINE_SHARE,
    MFU,
    RESTART_S,
    STORAGE,
)
from launch.estimate.units import bytes_of, duration, percent

From = Literal["measured", "published", "maker's", "not measured"]


@dataclass(frozen=True)
class Constant:
    """names: of the module's own constants that it stands for. option: that states another value.

    origin: measured by us; published by others; the maker's figure; or not measured, which is assumed.
    source: file, paper or data sheet; of what is not measured, what would measure it.
    """

    what: str
    value: str
    origin: From
    source: str
    names: tuple[str, ...]
    option: str = ""


LOADER = "benchmarks/results/loader.json, CPU by stage, AMD EPYC"
DOCTOR = "assumed; foreframe doctor --hosts measures links"


def constants() -> Iterator[Constant]:
    """In the order in which an estimate uses them."""
    yield Constant(
        "share of the peak while it computes", percent(MFU), "measured",
        "a ViT-g on an H100, benchmarks/results/gpu.json; else assumed", ("MFU",),
        "--mfu",
    )  # fmt: skip
    for gpu in GPUS.values():
        is_assumed = gpu.name in ASSUMED_NETWORK
        yield Constant(
            f"{gpu.name}: bf16, memory, link in its node",
            f"{gpu.bf16:,.4g} TFLOP/s, {bytes_of(gpu.memory)}, {bytes_of(gpu.link)}/s",
            "maker's", "data sheets named in launch/estimate/gpus.py, pretrain/peaks.py", ("GPUS",),
            "--tflops, --memory",
        )  # fmt: skip
        yield Constant(
            f"{gpu.name}: to other nodes", f"{bytes_of(gpu.network)}/s",
            "not measured" if is_assumed else "maker's",
            DOCTOR if is_assumed else "its share of a DGX's network, launch/estimate/gpus.py",
            ("ASSUMED_NETWORK",) if is_assumed else ("GPUS",), "--network",
        )  # fmt: skip
    yield Constant(
        "a CPU rank: to others", f"{bytes_of(CPU_NETWORK)}/s", "not measured", DOCTOR, ("CPU_NETWORK",),
        "--network",
    )  # fmt: skip
    yield Constant(
        "of a link's rate that a collective gets", percent(LINE_SHARE), "not measured",
        "assumed; nccl-tests' bus bandwidth over the line rate would say it", ("LINE_SHARE",),
    )  # fmt: skip
    yield Constant(
        "latency of a collective", "none", "not measured",
        "not counted; NCCL's own tuning model (src/graph/tuning.cc: 8.4 µs, 3.4 µs a hop by NVLink, 9.6 µs "
        "by network) puts a ring's gather over 64 nodes of 8 at 2.1 ms", (),
    )  # fmt: skip
    yield Constant(
        "hidden, of what may go on beside computing", percent(HIDDEN_SHARE), "not measured",
        "assumed at best: NCCL takes multiprocessors; perf/mfu with and without strategy.overlap_comm "
        "would say it", ("HIDDEN_SHARE",),
    )  # fmt: skip
    yield Constant(
        "of a GPU's memory left free", percent(FREE_SHARE), "not measured",
        "assumed; foreframe smoke --device cuda tells a peak", ("FREE_SHARE",), "--memory",
    )  # fmt: skip
    for encoding, size in BYTES.items():
        yield Constant(
            f"CPU of a {encoding} clip, for a GPU; as floats",
            f"{CPU_MS[encoding]:g} ms; {CPU_MS_FLOATS[encoding]:g} ms", "measured", LOADER,
            ("CPU_MS", "CPU_MS_FLOATS"),
        )  # fmt: skip
        yield Constant(
            f"bytes of a {encoding} clip", bytes_of(size), "measured",
            "benchmarks/results/shard.json, size", ("BYTES",),
        )  # fmt: skip
    yield Constant(
        "storage, all nodes together", f"{bytes_of(STORAGE)}/s", "not measured",
        "assumed; foreframe doctor --hosts measures stores", ("STORAGE",), "--storage",
    )  # fmt: skip
    yield Constant(
        "a rank's copy to host memory", f"{bytes_of(HOST_COPY)}/s", "measured",
        "docs/decisions/0012-checkpoints-beside-training.md, on CPU; from a GPU not measured",
        ("HOST_COPY",),
    )  # fmt: skip
    yield Constant(
        "ranks agree on a save", duration(AGREE_S), "not measured", "assumed", ("AGREE_S",)
    )  # fmt: skip
    yield Constant(
        "from a failure until it trains again", duration(RESTART_S), "not measured",
        "assumed; restarts.jsonl of a run says it", ("RESTART_S",),
    )  # fmt: skip
    yield Constant(
        "failures of a node a day", f"{FAILURES:.4f}", "published",
        "Llama 3, arXiv:2407.21783, sec. 3.3.4: 419 in 54 days of 2,048 nodes", ("FAILURES",), "--failures",
    )  # fmt: skip


def explained(gpu: str) -> Iterator[str]:
    """The table for a terminal, of one GPU; a constant that has no line of its own is told nowhere else."""
    others = tuple(f"{name}: " for name in GPUS if name != gpu) + (("a CPU rank",) if gpu != "cpu" else ())
    yield "What this rests on:"
    for each in constants():
        if each.what.startswith(others):
            continue
        option = f"  [{each.option}]" if each.option else ""
        yield f"  {each.what}: {each.value}{option}"
        yield from (f"      {line}" for line in _wrapped(f"{each.origin}: {each.source}"))


def _wrapped(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(words, 92)
