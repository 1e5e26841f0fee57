"""All that one GPU is measured for, in under nine minutes: `make bench-gpu`, or `python -m benchmarks.gpu`.

In the order of what it is worth. Each part is a process with a limit of its own; together the limits come to
less than `--total-s`, so that every part is reached, and what one leaves of its time others may take, up to
twice their limit. `--list` prints the parts with limits and reasons. One that is ended keeps the rows that it
had printed. benchmarks/results/gpu.json is written after every part, and keeps what earlier calls measured
with the same code on the same device: `--only PART`, or `--missing` for those that are not done yet, spread
the parts over several calls.

`--peer vjepa2=CHECKOUT` puts Meta's code beside ours. `--device cpu` runs the code of every part on a small
model, to try it before a GPU is at hand. No network, no data set.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measuring import RESULTS
from benchmarks.running import ROOT, Part, facts_of, kept, left_to_do, run_parts, table
from launch.environment import described_cpu
from launch.processes import stops_at_once

TOTAL_S = 520.0
VIT_L, VIT_G = "ViT-L, 16 frames of 256²", "ViT-g, 16 frames of 256²"
SMALL, AS_ON_GPU = "ViT-tiny, 8 frames of 64²", "ViT-tiny, 4 frames of 64², as on a GPU"
MICRO = {"cuda": ["ViT-L, all kept", "ViT-g, all kept"], "cpu": ["ViT-tiny, all kept"]}
# Seconds, and what they are for: what a part took on an H100 with time to spare, or where it was not measured
# what is reckoned. torch and DeepSpeed take 15 s to import on a machine that is cold, 6 s when they were read
# before; CUDA and a ViT-L with its optimizer 10 s; blocks 15 s from the cache that a part before has filled.
LIMITS = {
    "step": (120, "took 95 with Meta's code on an H100; rows after each"),
    "feeding": (110, "75 were too few on an H100: copies were done, steps were not"),
    "large step": (70, "took 59 on an H100; without a peer"),
    "micro-batch": (75, "two tries, took 60 on an H100"),
    "attention": (30, "took 19 on an H100; ViT-L alone"),
    "moving average": (35, "import 6, engine 10 + 12, three turns 2"),
    "checkpoint": (60, "import 6, engine 10 + 12, four saves of 5 GB 30; rows after each"),
    "smoke": (120, "`foreframe smoke`; only where it is named"),
    "encoder": (110, "encoder alone beside transformers', as `step`; only where it is named"),
    "gains": (240, "a step with each setting off, each compiled anew; only where it is named"),
}
EXTRA = ("smoke", "encoder", "gains")
ON_CPU = 3  # times the limits and the total: a few cores, and others may use them


def parts_of(peers: list[str], device: str) -> list[Part]:
    """device: what the benchmarks are told; on cpu each runs its smallest case."""
    is_gpu = device == "cuda"
    told = [word for peer in peers for word in ("--peer", peer)]
    on = ["--device", device]
    turns = ["--turns", "3", "--wait-s", "0"] if is_gpu else ["--turns", "2", "--wait-s", "0"]
    steps = [*turns, "--steps", "5" if is_gpu else "2"]
    case, same_way = (["--case", VIT_L if is_gpu else tried] for tried in (SMALL, AS_ON_GPU))
    micro = [word for case in MICRO[device] for word in ("--case", case)]
    words: Mapping[str, list[str]] = {
        "step": ["train_step", *on, *same_way, *steps, "--only", "step", *told],
        "feeding": ["feeding", *on, *same_way, *steps, "--quick", "--encoding", "mp4"],
        "large step": ["train_step", *on, "--case", VIT_G if is_gpu else SMALL, *steps, "--only", "step"],
        "micro-batch": ["micro_batch", *on, *micro, "--largest"],
        "attention": ["attention", *on, *case, *turns],
        "moving average": ["ema", *on, *case, "--quick", "--one-rank"],
        "checkpoint": ["checkpoint", *on, *case, "--quick"],
        "encoder": ["train_step", *on, *case, *steps, "--only", "encoder"],
        "gains": ["train_step", *on, *case, *steps, "--only", "step", "--gains"],
    }

    def part(name: str) -> Part:
        limit_s = float(LIMITS[name][0] if is_gpu else ON_CPU * LIMITS[name][0])
        if name == "smoke":
            return Part(name, ["-m", "launch", "smoke", *on], limit_s, is_extra=True)
        module, *rest = words[name]
        needs = ROOT / "benchmarks" / f"{module}.py"
        return Part(name, ["-m", f"benchmarks.{module}", *rest], limit_s, needs, is_extra=name in EXTRA)

    return [part(name) for name in LIMITS]


def listed() -> str:
    """A line a part: name, limit, why."""
    lines = [f"{name:15} {limit_s:4d} s  {why}" for name, (limit_s, why) in LIMITS.items()]
    usual = sum(limit_s for name, (limit_s, _) in LIMITS.items() if name not in EXTRA)
    return "\n".join(
        [*lines, f"{'together':15} {usual:4d} s  of those that are not named, of {TOTAL_S:.0f} s"]
    )


def main() -> None:
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append", metavar="PART", help="one or several of the parts")
    parser.add_argument("--missing", action="store_true", help="only parts that are not done yet in --out")
    parser.add_argument("--list", action="store_true", help="print the parts and their limits, and end")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--total-s", type=float, help=f"for all parts together; {TOTAL_S:.0f}, on a CPU {ON_CPU} times that"
    )
    parser.add_argument("--out", type=Path, help="results/gpu.json; on a CPU results/gpu_tried.json")
    given = parser.parse_args()
    if given.list:
        print(listed())
        return
    parts = parts_of(given.peer, given.device)
    unknown = set(given.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"--only {sorted(unknown)[0]!r}: the parts are {', '.join(p.name for p in parts)}")
    file = given.out or RESULTS / ("gpu.json" if given.device == "cuda" else "gpu_tried.json")
    facts = facts_of(file, named(given.device, parser))
    wanted = [part for part in parts if (part.name in given.only if given.only else not part.is_extra)]
    if given.missing:
        wanted = left_to_do(wanted, kept(file, facts))
    total_s = given.total_s or (TOTAL_S if given.device == "cuda" else ON_CPU * TOTAL_S)
    total_s -= time.monotonic() - began_s
    order = [part.name for part in parts]
    with stops_at_once(says=True):  # what runs is ended with it
        found = run_parts(wanted, file, total_s, sys.executable, facts, order)
    print(f"\n{found['device']}, {found['seconds']:.0f} s\n{table(found)}\nwrote {file}")


def named(kind: str, parser: argparse.ArgumentParser) -> str:
    """The device as results name it."""
    if kind == "cpu":
        return described_cpu()
    import torch

    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: see nvidia-smi, and that torch is a CUDA build")
    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
