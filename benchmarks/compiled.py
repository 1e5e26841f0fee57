"""Whole steps with blocks through torch.compile beside the same without: `python -m benchmarks.compiled`.

Both train the same model on the same clips and masks, turn by turn, in one process. Packed rows have another
number of tokens in each batch, so that what is compiled for one is used for all, or seen not to be: graphs
that were compiled after the first turn are told.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from benchmarks.measuring import Quiet, Row, publish, row, tell
from benchmarks.train_step import CPU_CASES, CUDA_CASES, Clock, batches_of, config_of, one_step, rate
from pretrain.build import build_engine
from pretrain.config import plan
from pretrain.kernels import kernels_for
from pretrain.model.compiling import COMPILER, graphs_compiled
from pretrain.strategy.base import World


def measure(
    case: str, shape: tuple[int | str, ...], device: torch.device, turns: int, steps: int, quiet: Quiet
) -> list[Row]:
    config = config_of(shape, "bf16" if device.type == "cuda" else "fp32", "none")  # type: ignore[arg-type]
    world, clock, clips = World(0, 1, device), Clock(device), config.train.micro_batch
    batches = batches_of(config, device)
    plain = replace(kernels_for(config, world), compiler=None)
    engines = [
        build_engine(plan(config, 1), world, replace(plain, compiler=compiler))
        for compiler in (COMPILER, None)
    ]
    rates: list[list[float]] = [[], []]
    began = graphs_compiled()
    first = began
    for turn in range(turns + 1):  # the first compiles, and warms up
        quiet.wait()
        for found, engine in zip(rates, engines, strict=True):
            each = rate(
                lambda n, engine=engine: one_step(engine, config, batches[n]),  # type: ignore[misc]
                clips, steps, clock,
            )  # fmt: skip
            if turn:
                found.append(each)
        first = graphs_compiled() if not turn else first
    later = graphs_compiled() - first
    compiled, written = (sorted(found)[turns // 2] for found in rates)
    tell(
        f"{case}: compiled {compiled:.3g} clips/s, else {written:.3g}; {first - began} graphs, {later} later"
    )
    return [
        row(case, "clips a second, blocks compiled", "clips/s", *rates, "not compiled"),
        row(case, "graphs compiled in the first turn", "", [first - began]),
        row(case, "graphs compiled later", "", [later]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="one or several of the cases; without it all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    device, quiet = torch.device(given.device), Quiet(given.wait_s)
    cases = CPU_CASES if device.type == "cpu" else CUDA_CASES
    rows: list[Row] = []
    for case in given.case or cases:
        rows += measure(case, cases[case], device, given.turns, given.steps, quiet)
    facts = {"turns": given.turns, "steps": given.steps, "busy_with_other_work": quiet.loads}
    publish(f"compiled_{device.type}", facts, rows, is_whole=given.case is None)


if __name__ == "__main__":
    main()
