"""All that one GPU is measured for, in under nine minutes: `make bench-gpu`, or `python -m benchmarks.gpu`.

In the order of what it is worth, so that what is cut off at the end is missed least. `--peer vjepa2=CHECKOUT`
puts Meta's code beside ours. Writes benchmarks/results/gpu.json after every part. No network, no data set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.measuring import RESULTS
from benchmarks.running import ROOT, Part, run_parts, table

TOTAL_S = 520.0
VIT_L, VIT_G = "ViT-L, 16 frames of 256²", "ViT-g, 16 frames of 256²"


def parts_of(peers: list[str], device: str) -> list[Part]:
    """device: what the benchmarks are told; cpu tries the order of things without a GPU."""
    told = [word for peer in peers for word in ("--peer", peer)]
    short = ["--turns", "3", "--steps", "5", "--wait-s", "0", "--device", device]

    def benchmark(name: str, module: str, *words: str, limit_s: float) -> Part:
        needs = ROOT / "benchmarks" / f"{module}.py"
        return Part(name, ["-m", f"benchmarks.{module}", *words], limit_s, needs)

    return [
        benchmark("ViT-L step", "train_step", "--case", VIT_L, *short, *told, limit_s=150),
        benchmark("attention", "attention", "--device", device, "--turns", "3", "--wait-s", "0", limit_s=60),
        benchmark("largest micro-batch", "micro_batch", "--device", device, limit_s=150),
        benchmark("ViT-g step", "train_step", "--case", VIT_G, *short, *told, limit_s=120),
        benchmark("moving average", "ema", "--device", device, "--quick", limit_s=45),
        benchmark("checkpoint", "checkpoint", "--device", device, "--quick", limit_s=45),
        Part("smoke", ["-m", "launch", "smoke", "--device", device], 120),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append", metavar="PART", help="one or several of the parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: see nvidia-smi, and that torch is a CUDA build")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    parts = parts_of(given.peer, given.device)
    unknown = set(given.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"--only {sorted(unknown)[0]!r}: the parts are {', '.join(p.name for p in parts)}")
    wanted = [part for part in parts if not given.only or part.name in given.only]
    found = run_parts(wanted, given.out, given.total_s, sys.executable, {"device": name})
    print(f"\n{name}, {found['seconds']:.0f} s\n{table(found)}\nwrote {given.out}")


if __name__ == "__main__":
    main()
