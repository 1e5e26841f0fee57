"""What a machine without a GPU is measured for, in minutes: `make bench`, or `python -m benchmarks.cpu`.

Short forms of the benchmarks, on the smallest model where the size says little. Limits are about twice what a
part takes on two cores that are its own, and more where others leave some time. Those that need the demo's
data are left out where `make demo` was not run. Where others use the machine when it begins, limits are up
to three times as long. runs/bench/cpu.json is written after every part, and keeps what earlier calls measured
with the same code on the same device; with --keep it is benchmarks/results/cpu.json of the repository.
The exit code is 1 where a part failed or was out of time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import RESULTS, busy_share, tell
from benchmarks.running import (
    ROOT,
    Part,
    busy_factor,
    facts_of,
    kept,
    left_to_do,
    run_parts,
    table,
    unfinished,
)
from launch.environment import described_cpu
from launch.processes import stops_at_once

TOTAL_S = 960.0
OUT = Path("runs/bench/cpu.json")
SMALL = "ViT-tiny, 8 frames of 64²"


def parts_of(peers: list[str], data: Path) -> list[Part]:
    """data: shards of the demo's videos. Cases are named where a whole benchmark would write its own file."""
    told = [word for peer in peers for word in ("--peer", peer)]
    home = ROOT / "benchmarks"
    step = ["-m", "benchmarks.train_step", "--device", "cpu", "--turns", "3", "--steps", "5", "--wait-s", "0"]
    tracking = ["-m", "benchmarks.tracking", str(data), "--case", "metrics.jsonl", "--wait-s", "0"]
    attention = ["-m", "benchmarks.attention", "--device", "cpu", "--turns", "3", "--wait-s", "0"]
    quick = ["--device", "cpu", "--case", SMALL, "--quick"]
    feeding = ["-m", "benchmarks.feeding", *quick, "--encoding", "mp4"]
    return [
        Part("training step", [*step, "--case", SMALL, *told], 120, home / "train_step.py"),
        Part("attention", [*attention, "--case", SMALL], 60, home / "attention.py"),
        Part("moving average", ["-m", "benchmarks.ema", *quick], 90, home / "ema.py"),
        Part("checkpoint", ["-m", "benchmarks.checkpoint", *quick], 60, home / "checkpoint.py"),
        Part("feeding", [*feeding, "--turns", "2", "--steps", "5"], 90, home / "feeding.py"),
        Part("tracking", tracking, 120, data),
        Part("memory, ZeRO-1", ["-m", "benchmarks.memory", "--only", "1"], 240, home / "memory.py"),
        Part("smoke", ["-m", "launch", "smoke", "--device", "cpu"], 120),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append", metavar="PART", help="one or several of the parts")
    parser.add_argument("--missing", action="store_true", help="only parts that are not done yet in --out")
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"))
    parser.add_argument("--total-s", type=float, help="for all parts together; by default 960, more if busy")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the results; by default {OUT}")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results/cpu.json instead")
    given = parser.parse_args()
    if given.keep:
        given.out = RESULTS / "cpu.json"
    parts = parts_of(given.peer, given.data.absolute())
    unknown = set(given.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"--only {sorted(unknown)[0]!r}: the parts are {', '.join(p.name for p in parts)}")
    wanted = [part for part in parts if not given.only or part.name in given.only]
    facts = facts_of(given.out, described_cpu())
    if given.missing:
        wanted = left_to_do(wanted, kept(given.out, facts))
    order = [part.name for part in parts]
    load = busy_share()
    factor = busy_factor(load)
    if factor > 1:
        tell(f"others use {load:.0%} of the cores: limits are {factor:.1f} times as long, figures less sure")
    wanted = [replace(part, limit_s=factor * part.limit_s) for part in wanted]
    total_s = given.total_s or factor * TOTAL_S
    tell(f"{len(wanted)} parts, five minutes on two quiet cores, at most {total_s / 60:.0f} min")
    with stops_at_once(says=True):  # what runs is ended with it
        found = run_parts(wanted, given.out, total_s, sys.executable, facts, order)
    print(f"\n{found['device']}, {found['seconds']:.0f} s\n{table(found)}\nwrote {given.out}")
    if sentence := unfinished(wanted, found):
        sys.exit(sentence)


if __name__ == "__main__":
    main()
