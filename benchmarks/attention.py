"""Attention alone, on the rows of a training step: `python -m benchmarks.attention`.

Each stack of a model (context encoder, predictor, target) has rows of its own; every way to attend over them
that works here is timed turn by turn, forward, and backward where the stack goes backward. The reference is
SDPA with unequal sequences laid out under a mask. The floor is the time that the products of queries, keys
and values alone would take at the rate measured here for a large product.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.contenders import CASES, Shape, config_of, matrix_rates
from benchmarks.measuring import Quiet, Row, keep, publish, row, tell
from pretrain.flops import TRAINED
from pretrain.kernels import stack_rows
from pretrain.model import attention
from pretrain.model.attention import Backend
from pretrain.model.choose import Rows, milliseconds, why_not

MORE_CPU_CASES = {
    "ViT-tiny, 8 frames of 64², 16 clips": Shape("vit_tiny", 8, 64, 16),
    "ViT-tiny, 16 frames of 96²": Shape("vit_tiny", 16, 96, 4),
}
ON_CPU: tuple[Backend, ...] = ("segments", "sdpa")


def flops_of(rows: Rows) -> float:
    """Of the two products of each sequence, and of their gradients."""
    pairs = sum(length * length for length in rows.lengths)
    return 4.0 * pairs * rows.heads * rows.head_width * (TRAINED if rows.goes_backward else 1)


def described(case: str, stack: str, rows: Rows) -> str:
    least, most = min(rows.lengths), max(rows.lengths)
    lengths = f"{most}" if least == most else f"{least} to {most}"
    count = len(rows.lengths)
    return f"{case}: {stack}, {count} sequences of {lengths}, {rows.heads} heads of {rows.head_width}"


def measure(case: str, stack: str, rows: Rows, device: torch.device, turns: int, quiet: Quiet) -> list[Row]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    on_cpu: Sequence[Backend] = ON_CPU if len(set(rows.lengths)) > 1 else ("sdpa",)  # equal: one way
    ways = rows.candidates if device.type == "cuda" else on_cpu
    works = [each for each in ways if why_not(each, device, dtype, rows) is None]
    rates: dict[Backend, list[float]] = {each: [] for each in works}
    matrices: list[float] = []
    for _ in range(turns):
        quiet.wait()
        milliseconds(works[0], device, dtype, rows)  # threads wake up
        for each in works:
            rates[each].append(1000 / milliseconds(each, device, dtype, rows))
        matrices.append(max(matrix_rates(device, dtype).values()))
    name, flops = described(case, stack, rows), flops_of(rows)
    found = []
    for each in works:
        found.append(row(name, f"{each}: calls a second", "1/s", rates[each], rates["sdpa"], "sdpa"))
        shares = [100 * rate * flops / best for rate, best in zip(rates[each], matrices, strict=True)]
        found.append(row(name, f"{each}: share of the matrix rate", "%", shares))
    told = ", ".join(f"{each} {1000 / sorted(rates[each])[turns // 2]:.3g} ms" for each in works)
    tell(f"{name}: {told}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="one or several of the cases; without it all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    device, quiet = torch.device(given.device), Quiet(given.wait_s)
    attention.LONG_ENOUGH = 0  # sequence by sequence also where runs lay them out: to see from where it pays
    cases = CASES[given.device] | (MORE_CPU_CASES if device.type == "cpu" else {})
    rows: list[Row] = []
    for case in given.case or cases:
        config = config_of(cases[case], {"objective.truncate": "none"})
        for stack, each in stack_rows(config).items():
            rows += measure(case, stack, each, device, given.turns, quiet)
            keep(rows)
    facts = {"turns": given.turns, "busy_with_other_work": quiet.loads}
    publish(f"attention_{device.type}", facts, rows, is_whole=given.case is None)


if __name__ == "__main__":
    main()
