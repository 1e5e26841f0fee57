"""Attention alone, on the rows of a training step: `python -m benchmarks.attention`.

Each stack of a model (context encoder, predictor, target) has rows of its own; every way to attend over them
that works here is timed turn by turn, forward, and backward where the stack goes backward. The reference is
SDPA with unequal sequences laid out under a mask. The floor is the time that the products of queries, keys
and values alone would take at the rate measured here for a large product.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

import torch

from benchmarks.contenders import CASES, Shape, config_of, matrix_rates
from benchmarks.measuring import Quiet, Row, publish, row, so_far, tell
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


def measure(
    case: str, stacks: Mapping[str, Rows], device: torch.device, turns: int, quiet: Quiet
) -> list[Row]:
    """All stacks of a case, turn by turn; the rate of a large product once a turn."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    works = {stack: ways(rows, device, dtype) for stack, rows in stacks.items()}
    rates: dict[str, dict[Backend, list[float]]] = {
        stack: {each: [] for each in found} for stack, found in works.items()
    }
    matrices: list[float] = []
    for _ in range(turns):
        quiet.wait()
        for stack, rows in stacks.items():
            milliseconds(works[stack][0], device, dtype, rows)  # threads wake up
            for each in works[stack]:
                rates[stack][each].append(1000 / milliseconds(each, device, dtype, rows))
        matrices.append(max(matrix_rates(device, dtype).values()))
    found: list[Row] = []
    for stack, rows in stacks.items():
        found += rows_of(described(case, stack, rows), rates[stack], matrices, flops_of(rows))
    return found


def ways(rows: Rows, device: torch.device, dtype: torch.dtype) -> list[Backend]:
    """To attend over these rows, that work here and have memory enough."""
    on_cpu: Sequence[Backend] = ON_CPU if len(set(rows.lengths)) > 1 else ("sdpa",)  # equal: one way
    candidates = rows.candidates if device.type == "cuda" else on_cpu
    found: list[Backend] = []
    for each in candidates:
        reason = why_not(each, device, dtype, rows)
        if reason is None and device.type == "cuda":
            try:
                milliseconds(each, device, dtype, rows)
            except torch.OutOfMemoryError as error:  # sequences laid out under a mask in full
                reason = str(error)
        if reason is None:
            found.append(each)
        else:
            tell(f"{each} is left out: {reason}")
    return found


def rows_of(
    name: str, rates: Mapping[Backend, list[float]], matrices: Sequence[float], flops: float
) -> list[Row]:
    """rates: calls a second. matrices: FLOP/s of a large product. flops: of a call."""
    found, reference = [], rates.get("sdpa", [])
    for each, calls in rates.items():
        beside = "sdpa" if reference else ""
        found.append(row(name, f"{each}: calls a second", "1/s", calls, reference, beside))
        shares = [100 * rate * flops / best for rate, best in zip(calls, matrices, strict=True)]
        found.append(row(name, f"{each}: share of the matrix rate", "%", shares))
    told = ", ".join(f"{each} {1000 / statistics.median(calls):.3g} ms" for each, calls in rates.items())
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
        rows += measure(case, stack_rows(config), device, given.turns, quiet)
        so_far(rows)
    facts = {"turns": given.turns, "busy_with_other_work": quiet.loads}
    publish(f"attention_{device.type}", facts, rows, is_whole=given.case is None)


if __name__ == "__main__":
    main()
