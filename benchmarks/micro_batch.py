"""The largest micro-batch, and the bytes of a step, against the estimate: `python -m benchmarks.micro_batch`.

For each model and way to keep activations: the peak of a few clips beside what `foreframe estimate` plans for
them, and whether the largest micro-batch that it says would fit does. Masks of different lengths, as training
draws them. Each try is a process of its own, as memory that ran short is not to be had back. For a GPU; on
a CPU the peak is what the process holds with all its libraries, and only shows that this runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.contenders import PREDICTOR, Shape, alone, batches_of, config_of, one_step
from benchmarks.measuring import Row, keep, publish, row, tell
from launch.estimate.memory import Weights, clips_that_fit, moments_of, recomputing
from launch.outline import num_parameters
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan

USABLE = 0.9  # of a GPU's memory, as the estimate leaves it
FEW = 4
CASES = {
    "cuda": {
        "ViT-L, all kept": ("vit_large", False),
        "ViT-L, all again": ("vit_large", True),
        "ViT-H, all kept": ("vit_huge", False),
        "ViT-g, all kept": ("vit_giant", False),
        "ViT-g, all again": ("vit_giant", True),
    },
    "cpu": {"ViT-tiny, all kept": ("vit_tiny", False)},
}
GIVEN_S = 60.0


@dataclass(frozen=True)
class Try:
    """peak: bytes at most, None where memory ran short. planned: by the estimate."""

    clips: int
    peak: float | None
    planned: float


def run_of(preset: str, clips: int, device: str, *, again: bool) -> RunConfig:
    frames, size = (16, 256) if device == "cuda" else (8, 64)
    shape = Shape(
        preset, frames, size, clips, device, "bf16" if device == "cuda" else "fp32", dict(PREDICTOR)
    )
    # As they are written, which the estimate counts; and compiling would take most of the time of a try.
    changes = {"objective.truncate": "none", "train.compile": "none"}
    return recomputing(config_of(shape, changes), again)


def weights_of(config: RunConfig) -> Weights:
    sizes = num_parameters(config)
    return Weights(sum(sizes.values()), sizes["predictor"], sizes["encoder"])


def attempt(preset: str, clips: int, device: str, *, again: bool) -> Try:
    """Two steps of `clips`, in this process."""
    config = run_of(preset, clips, device, again=again)
    planned = max(moments_of(plan(config, 1), weights_of(config), device).values())
    where = torch.device(device)
    try:
        engine = build_engine(plan(config, 1), alone(where))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for batch in batches_of(config, where)[:2]:
            one_step(engine, config, batch)
    except torch.OutOfMemoryError:
        return Try(clips, None, planned)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * _resident_kib()
    return Try(clips, float(peak), planned)


def _resident_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(preset: str, clips: int, device: str, *, again: bool) -> Try | None:
    """None where it did not end in time, or not well."""
    words = ["--device", device, "--one", preset, str(clips), "again" if again else "kept"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.micro_batch", *words],
            stdout=subprocess.PIPE, timeout=GIVEN_S, check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        tell(f"{preset}, {clips} clips: {error}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Try(**found)


def rows_of(case: str, preset: str, device: str, memory: float, *, again: bool) -> list[Row]:
    config = run_of(preset, FEW, device, again=again)
    largest = clips_that_fit(plan(config, 1), USABLE * memory, weights_of(config), device)
    rows = []
    for clips in (FEW, largest):
        found = in_a_process(preset, clips, device, again=again) if clips else None
        if found is None:
            continue
        told = "ran short" if found.peak is None else f"{found.peak / 1e9:.2f} GB"
        tell(f"{case}, {clips} clips: {told}, planned {found.planned / 1e9:.2f} GB")
        if found.peak is None:
            rows.append(row(case, f"ran short, of {clips} clips that were to fit", "clips", [clips]))
        else:
            metric = f"most bytes of a step, {clips} clips"
            pair = [found.peak / 1e9], [found.planned / 1e9]
            rows.append(row(case, metric, "GB", *pair, "the estimate's") | {"clips": clips})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=list(CASES), default="cuda")
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "CLIPS", "AGAIN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        preset, clips, again = given.one
        print(json.dumps(asdict(attempt(preset, int(clips), given.device, again=again == "again"))))
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    memory = torch.cuda.mem_get_info()[1] if given.device == "cuda" else 1e9
    rows: list[Row] = []
    for case, (preset, again) in CASES[given.device].items():
        rows += rows_of(case, preset, given.device, memory, again=again)
        keep(rows)
    facts = {"gpu_bytes": memory, "usable": USABLE, "turns": 1}
    publish("micro_batch", facts, rows, is_whole=given.device == "cuda")


if __name__ == "__main__":
    main()
