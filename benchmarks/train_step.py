"""A whole training step beside its floor and peers: `python -m benchmarks.train_step --peer vjepa2=CHECKOUT`.

Ours and theirs train the same model on the same clips under the same masks (cut to equal lengths, as theirs
must be), turn by turn, each in a process of its own. The floor is the time that the step's matrix products
alone would take at the best rate measured here for a large product. CHECKOUT is a clone of Meta's repository;
transformers' encoder is timed beside ours where it is installed. With `--gains`: ours with each of what makes
it fast switched off. On a GPU contenders come one after the other, and what is measured of those that are
through is printed at once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.contenders import (
    CASES,
    NUM_BATCHES,
    PARTS,
    TRIED,
    Running,
    Shape,
    config_of,
    masks_of,
    matrix_rates,
    our_encoder,
    ours,
    running,
    theirs,
    transformers_encoder,
)
from benchmarks.measuring import Quiet, Row, publish, row, short, so_far, tell
from pretrain.flops import TARGET, flops_of, parts_of

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


@dataclass
class Timed:
    """rates: clips a second of each contender, turn by turn. parts: seconds of each part of a step of the
    first. parameters: that each contender trains.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    parts: list[list[float]] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)


Made = Sequence[tuple[str, Any, tuple[Any, ...]]]


def turn_about(
    made: Made, shape: Shape, given: argparse.Namespace, quiet: Quiet, after: Callable[[Timed], None]
) -> Timed:
    """All contenders, a turn each after the other.

    On a GPU each has the memory to itself: they come one after the other, all turns of one together; `after`
    is called after each with what is known then.
    """
    found = Timed()

    def turn(name: str, contender: Running) -> None:
        quiet.wait()
        rate = shape.clips * given.steps / contender.seconds(given.steps)
        found.rates.setdefault(name, []).append(rate)

    def begin(name: str, contender: Running) -> None:
        found.parameters[name] = contender.parameters
        contender.seconds(NUM_BATCHES)  # every batch once

    if shape.device == "cuda":
        for number, (name, make, args) in enumerate(made):
            with running(make, args, shape.device) as contender:
                begin(name, contender)
                for _ in range(given.turns):
                    turn(name, contender)
                if number == 0 and make is ours:
                    found.parts = contender.parts(given.steps)
            after(found)
        return found
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
            found.parts = contenders[made[0][0]].parts(given.steps)
    return found


def step_rows(
    case: str, shape: Shape, given: argparse.Namespace, quiet: Quiet, before: Sequence[Row]
) -> list[Row]:
    """before: rows of other cases, printed with those of this one while it goes on."""
    made: list[tuple[str, Any, tuple[Any, ...]]] = [("ours", ours, (shape, {}))]
    if given.vjepa2 is not None:
        made.append((META, theirs, (shape, given.vjepa2)))
    if given.gains:
        made += [(name, ours, (shape, changes)) for name, changes in GAINS[shape.device].items()]
    device = torch.device(shape.device)
    libraries = matrix_rates(device, torch.bfloat16 if shape.precision == "bf16" else torch.float32)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the contenders have need of it
    config = config_of(shape)
    flops = statistics.mean(flops_of(config, masks).model for masks in masks_of(config)) / shape.clips
    target = statistics.mean(parts_of(config, masks)[TARGET].model for masks in masks_of(config))
    trained = flops * shape.clips - target
    of_parts = dict(zip(PARTS, (target, trained / 3, trained * 2 / 3), strict=False))

    def after(found: Timed) -> None:
        so_far([*before, *rows_of(case, found, libraries, flops, of_parts)])

    found = turn_about(made, shape, given, quiet, after)
    # The best of before and after: a floor that others' work has lowered would flatter all.
    again = matrix_rates(device, torch.bfloat16 if shape.precision == "bf16" else torch.float32)
    libraries = {name: max(rate, again[name]) for name, rate in libraries.items()}
    rates = found.rates
    against = f", {statistics.median(rates[META]):.2f} theirs" if META in rates else ""
    floor = max(libraries.values()) / flops
    tell(f"{case}: {statistics.median(rates['ours']):.2f} clips/s{against}, floor {floor:.2f}")
    return rows_of(case, found, libraries, flops, of_parts)


def rows_of(
    case: str, found: Timed, libraries: dict[str, float], flops: float, of_parts: dict[str, float]
) -> list[Row]:
    """libraries: matrix rates in FLOP/s. flops: of a clip. of_parts: of a step, by part that multiplies; the
    embedding of tubelets counts as trained, a hundredth of the target at most.
    """
    rest = dict(found.rates)
    mine, sizes, best = rest.pop("ours"), found.parameters, max(libraries.values())
    rows = [row(case, "clips a second, equal masks", "clips/s", mine)] if META not in rest else []
    for name, each in rest.items():
        metric = "clips a second, equal masks" if name == META else f"against {name}"
        rows.append(row(case, metric, "clips/s", mine, each, name))
    if META in sizes:
        rows.append(row(case, "parameters", "", [sizes["ours"]], [sizes[META]], META))
    rows += [row(case, f"matrix rate, {name}", "GFLOP/s", [r / 1e9]) for name, r in libraries.items()]
    for name, each in (("ours", mine), (META, rest.get(META, []))):
        if each:
            shares = [100 * rate * flops / best for rate in each]
            rows.append(row(case, f"share of the best matrix rate, {name}", "%", shares))
    rows.append(row(case, "FLOPs a clip", "GFLOP", [flops / 1e9]))
    whole = statistics.median(map(sum, found.parts))
    for name, times in zip(PARTS, zip(*found.parts, strict=True), strict=True):
        part = row(case, f"part: {name}", "ms", [1000 * each for each in times])
        part["share"] = short(statistics.median(times) / whole)
        if name in of_parts:
            part["gflops_a_second"] = short(of_parts[name] / statistics.median(times) / 1e9)
        rows.append(part)
    return rows


def encoder_rows(case: str, shape: Shape, given: argparse.Namespace, quiet: Quiet) -> list[Row]:
    """Forward and backward of the encoder on whole clips, beside transformers'."""
    name = "transformers' VJEPA2Model"
    made = [("ours", our_encoder, (shape,)), (name, transformers_encoder, (shape,))]
    found = turn_about(made, shape, given, quiet, lambda _: None)
    rates, sizes = found.rates, found.parameters
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
    parser.add_argument("--only", choices=("step", "encoder"), help="one of the two; nothing is written")
    parser.add_argument("--gains", action="store_true", help="also with each setting switched off")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument(
        "--device", choices=list(CASES), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    cases = CASES[given.device] | TRIED.get(given.device, {})
    peers = dict(each.partition("=")[::2] for each in given.peer)
    if unknown := [name for name in peers if name != "vjepa2"]:
        parser.error(f"--peer {unknown[0]}: the only peer is vjepa2=PATH")
    if unknown := [name for name in given.case or () if name not in cases]:
        parser.error(f"--case {unknown[0]!r}: there are {', '.join(map(repr, cases))}")
    given.vjepa2 = peers.get("vjepa2")
    quiet = Quiet(given.wait_s)
    rows: list[Row] = []
    for case in given.case or CASES[given.device]:
        if given.only != "encoder":
            rows += step_rows(case, cases[case], given, quiet, rows)
            so_far(rows)
        if given.only != "step" and find_spec("transformers") is not None:
            rows += encoder_rows(case, cases[case], given, quiet)
            so_far(rows)
    facts: dict[str, Any] = {
        "turns": given.turns,
        "steps": given.steps,
        "turn_about": given.device == "cpu",
        "busy_with_other_work": quiet.loads,
    }
    is_whole = given.case is None and given.only is None
    publish(f"train_step_{given.device}", facts, rows, is_whole=is_whole)


if __name__ == "__main__":
    main()
