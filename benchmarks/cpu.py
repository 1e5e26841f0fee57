"""What a machine without a GPU is measured for, in minutes: `make bench`, or `python -m benchmarks.cpu`.

Short forms of the benchmarks, on the smallest model where the size says little. Limits are about twice what a
part takes on two cores that are its own, and more where others leave some time. Those that need the demo's
data are left out where `make demo` was not run. benchmarks/results/cpu.json is written after every part, and
keeps what earlier calls measured with the same code on the same device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.measuring import RESULTS, device
from benchmarks.running import ROOT, Part, facts_of, kept, left_to_do, run_parts, table
from launch.processes import stops_at_once

TOTAL_S = 960.0
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
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    given = parser.parse_args()
    parts = parts_of(given.peer, given.data.absolute())
    unknown = set(given.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"--only {sorted(unknown)[0]!r}: the parts are {', '.join(p.name for p in parts)}")
    wanted = [part for part in parts if not given.only or part.name in given.only]
    facts = facts_of(given.out, device())
    if given.missing:
        wanted = left_to_do(wanted, kept(given.out, facts))
    order = [part.name for part in parts]
    with stops_at_once(says=True):  # what runs is ended with it
        found = run_parts(wanted, given.out, given.total_s, sys.executable, facts, order)
    print(f"\n{found['device']}, {found['seconds']:.0f} s\n{table(found)}\nwrote {given.out}")


if __name__ == "__main__":
    main()
