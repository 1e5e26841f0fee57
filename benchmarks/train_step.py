"""A whole training step beside its floor and peers: `python -m benchmarks.train_step --peer vjepa2=CHECKOUT`.

Ours and theirs train the same model on the same clips under the same masks (cut to equal lengths, as theirs
must be), turn by turn, each in a process of its own. The floor is the time that the step's matrix products
alone would take at the best rate measured here for a large product. CHECKOUT is a clone of Meta's repository;
transformers' encoder is timed beside ours where it is installed. With `--gains`: ours with each of what makes
it fast switched off.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.contenders import (
    CASES,
    NUM_BATCHES,
    PARTS,
    Running,
    Shape,
    batches_of,
    config_of,
    matrix_rates,
    our_encoder,
    ours,
    running,
    theirs,
    transformers_encoder,
)
from benchmarks.measuring import Quiet, Row, keep, publish, row, short, tell
from pretrain.flops import flops_of

META = "Meta's code"
GAINS = {
    "cpu": {
        "products by MKL": {"model.products": "torch"},
        "AdamW operation by operation": {"optim.fused": False},
        "attention laid out and masked": {"model.attention": "sdpa"},
        "blocks compiled": {"train.compile": "blocks"},
    },
    "cuda": {
        "blocks not compiled": {"train.compile": "none"},
        "AdamW operation by operation": {"optim.fused": False},
        "attention by SDPA": {"model.attention": "sdpa"},
    },
}


def turn_about(
    made: Sequence[tuple[str, Any, tuple[Any, ...]]], shape: Shape, given: argparse.Namespace, quiet: Quiet
) -> tuple[dict[str, list[float]], list[list[float]], dict[str, int]]:
    """Clips a second of each contender, a turn each after the other; the parts of the first; parameters.

    On a GPU each has the memory to itself: they come one after the other, all turns of one together.
    """
    rates: dict[str, list[float]] = {name: [] for name, _, _ in made}
    parts: list[list[float]] = []
    sizes: dict[str, int] = {}

    def turn(name: str, contender: Running) -> None:
        quiet.wait()
        rates[name].append(shape.clips * given.steps / contender.seconds(given.steps))

    def begin(name: str, contender: Running) -> None:
        sizes[name] = contender.parameters
        contender.seconds(NUM_BATCHES)  # every batch once

    if shape.device == "cuda":
        for number, (name, make, args) in enumerate(made):
            with running(make, args, shape.device) as contender:
                begin(name, contender)
                for _ in range(given.turns):
                    turn(name, contender)
                if number == 0 and make is ours:
                    parts = contender.parts(given.steps)
        return rates, parts, sizes
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(running(make, args, shape.device)) for name, make, args in made
        }
        for name, contender in contenders.items():
            begin(name, contender)
        for _ in range(given.turns):
            for name, contender in contenders.items():
                turn(name, contender)
        if made[0][1] is ours:
            parts = contenders[made[0][0]].parts(given.steps)
    return rates, parts, sizes


def step_rows(case: str, shape: Shape, given: argparse.Namespace, quiet: Quiet) -> list[Row]:
    device = torch.device(shape.device)
    dtype = torch.bfloat16 if shape.precision == "bf16" else torch.float32
    made: list[tuple[str, Any, tuple[Any, ...]]] = [("ours", ours, (shape, {}))]
    if given.vjepa2 is not None:
        made.append((META, theirs, (shape, given.vjepa2)))
    if given.gains:
        made += [(name, ours, (shape, changes)) for name, changes in GAINS[shape.device].items()]
    rates, parts, sizes = turn_about(made, shape, given, quiet)
    mine, rest = rates.pop("ours"), rates
    rows = [row(case, "clips a second, equal masks", "clips/s", mine)] if META not in rest else []
    for name, each in rest.items():
        metric = "clips a second, equal masks" if name == META else f"against {name}"
        rows.append(row(case, metric, "clips/s", mine, each, name))
    if META in sizes:
        rows.append(row(case, "parameters", "", [sizes["ours"]], [sizes[META]], META))
    libraries = matrix_rates(device, dtype)
    config = config_of(shape)
    counted = [flops_of(config, batch.masks).model for batch in batches_of(config, torch.device("cpu"))]
    flops, best = statistics.mean(counted) / shape.clips, max(libraries.values())
    rows += [row(case, f"matrix rate, {name}", "GFLOP/s", [r / 1e9]) for name, r in libraries.items()]
    for name, each in (("ours", mine), (META, rest.get(META, []))):
        if each:
            shares = [100 * rate * flops / best for rate in each]
            rows.append(row(case, f"share of the best matrix rate, {name}", "%", shares))
    rows.append(row(case, "FLOPs a clip", "GFLOP", [flops / 1e9]))
    whole = statistics.median(map(sum, parts))
    for name, times in zip(PARTS, zip(*parts, strict=True), strict=True):
        found = row(case, f"part: {name}", "ms", [1000 * each for each in times])
        rows.append(found | {"share": short(statistics.median(times) / whole)})
    against = f", {statistics.median(rest[META]):.2f} theirs" if META in rest else ""
    tell(f"{case}: {statistics.median(mine):.2f} clips/s{against}, floor {best / flops:.2f}")
    return rows


def encoder_rows(case: str, shape: Shape, given: argparse.Namespace, quiet: Quiet) -> list[Row]:
    """Forward and backward of the encoder on whole clips, beside transformers'."""
    name = "transformers' VJEPA2Model"
    made = [("ours", our_encoder, (shape,)), (name, transformers_encoder, (shape,))]
    rates, _, sizes = turn_about(made, shape, given, quiet)
    metric = "clips a second, encoder alone, forward and backward"
    return [
        row(case, metric, "clips/s", rates["ours"], rates[name], name),
        row(case, "parameters, encoder alone", "", [sizes["ours"]], [sizes[name]], name),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="vjepa2=a clone of it"
    )
    parser.add_argument("--case", action="append", help="one or several of the cases; without it all")
    parser.add_argument("--gains", action="store_true", help="also with each setting switched off")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument(
        "--device", choices=list(CASES), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    cases = CASES[given.device]
    peers = dict(each.partition("=")[::2] for each in given.peer)
    if unknown := [name for name in peers if name != "vjepa2"]:
        parser.error(f"--peer {unknown[0]}: the only peer is vjepa2=PATH")
    if unknown := [name for name in given.case or () if name not in cases]:
        parser.error(f"--case {unknown[0]!r}: there are {', '.join(map(repr, cases))}")
    given.vjepa2 = peers.get("vjepa2")
    quiet = Quiet(given.wait_s)
    rows: list[Row] = []
    for case in given.case or cases:
        rows += step_rows(case, cases[case], given, quiet)
        keep(rows)
        if find_spec("transformers") is not None:
            rows += encoder_rows(case, cases[case], given, quiet)
    facts: dict[str, Any] = {
        "turns": given.turns,
        "steps": given.steps,
        "turn_about": given.device == "cpu",
        "busy_with_other_work": quiet.loads,
    }
    publish(f"train_step_{given.device}", facts, rows, is_whole=given.case is None)


if __name__ == "__main__":
    main()
