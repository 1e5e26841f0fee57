"""Are collapses caught, at which step, and are healthy runs left alone? `python -m benchmarks.collapse OUT`.

Planted: no stop-gradient; a learning rate 30 times too high; a target that follows at once (momentum 0).
Healthy: the same small recipe under other seeds, objectives, masks, regularisers and learning rates. Runs lie
in OUT and are kept, so that an interrupted measurement goes on. The rules are asked again over what each run
logged, so that one that does not end the run is seen too. Speed is not measured: the machine may be busy.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, publish, tell
from launch.config import shipped_config
from launch.run_folder import RESULT_FILE, TrainResult
from pretrain.config import HealthConfig
from pretrain.health import judged_features
from pretrain.looks import largest_step
from pretrain.sentinel import History, Reading, judge
from pretrain.tracking.jsonl import read_metrics

COMMON = (
    "strategy.kind=single",
    "train.micro_batch=8",
    "train.steps=400",
    "train.checkpoint_every=1000",
    "train.log_every=5",
    "train.time_limit_s=null",
    "train.threads=1",
    "health.every=10",
    "health.on_collapse=note",
    "tracker.kind=jsonl",
)
PLANTED: Mapping[str, tuple[str, ...]] = {
    "no stop-gradient": ("target.kind=online", "target.stop_gradient=false", "train.steps=120"),
    "learning rate × 30": ("optim.lr=3e-2", "train.steps=200"),
    "momentum 0": ("target.momentum.start=0", "target.momentum.end=0", "train.steps=800"),
}
HEALTHY: Mapping[str, tuple[str, ...]] = {
    "as in the demo": (),
    "future_latent": ("objective.kind=future_latent",),
    "contrastive": ("objective.kind=contrastive",),
    "pixel": ("objective.kind=pixel",),
    "tubes": ("objective.masks=[{kind: tubes, hidden: 0.75}]",),
    "learning rate × 2": ("optim.lr=2e-3",),
    "learning rate × 0.3": ("optim.lr=3e-4",),
}
SEEDS = {
    **dict.fromkeys(PLANTED, 5),
    **dict.fromkeys(HEALTHY, 1),
    "as in the demo": 5,
    "future_latent": 2,
    "contrastive": 2,
    "tubes": 2,
}
RULES = ("falling", "spread", "rank", "volume", "blind", "large step", "runaway", "not finite")


def name_of(case: str, seed: int) -> str:
    words = case.replace("×", "x").replace(",", " ").replace("_", " ").split()
    return f"{'-'.join(words)}-{seed}"


def train(out: Path, data: Path, case: str, seed: int) -> None:
    """One run in a process of its own; nothing where it is finished."""
    name = name_of(case, seed)
    changes = [*COMMON, *({**PLANTED, **HEALTHY}[case]), f"data.shards={data}", f"out={out}"]
    steps = next(
        int(change.partition("=")[2]) for change in changes[::-1] if change.startswith("train.steps=")
    )
    if (out / name / RESULT_FILE).is_file() and TrainResult.read(out / name).step >= steps:
        return
    command = [sys.executable, "-m", "launch", "train", str(shipped_config("train/tiny-cpu.yaml"))]
    tell(f"{case}, seed {seed}")
    with (out / f"{name}.log").open("w") as log:
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        arguments = [*command, *changes, f"name={name}", f"seed={seed}", "--quiet"]
        subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, env=env, check=True)


def readings(lines: Sequence[dict[str, Any]]) -> Iterator[Reading]:
    """What the sentinel has read at each look, out of metrics.jsonl."""
    judged = judged_features(lines)

    def value(line: Mapping[str, Any], key: str) -> float:
        found = line.get(key)
        return math.nan if found is None else float(found)

    for line in lines:
        if "health/loss_prediction" not in line:
            continue
        norms = {key.removeprefix("optim/"): v for key, v in line.items() if "_norm_" in key}
        yield Reading(
            step=line["step"],
            spread=value(line, f"health/{judged}_std"),
            rank=value(line, f"health/{judged}_rankme"),
            loss=value(line, "loss"),
            guess=value(line, "health/loss_prediction"),
            mean_token=value(line, "health/loss_mean_token"),
            copied=value(line, "health/loss_copy"),
            largest_step=largest_step(norms),
        )


@dataclass(frozen=True)
class Seen:
    """Of one run: the first step of each rule, of a warning and of trouble; nan where there was none.

    loss: at that trouble, or at the end, as a share of that at the start.
    """

    rules: dict[str, float]
    warning: float
    trouble: float
    loss: float


def look_back(lines: Sequence[dict[str, Any]]) -> Seen:
    history, config = History(), HealthConfig()
    rules, warning, trouble, loss, start = dict.fromkeys(RULES, math.nan), math.nan, math.nan, math.nan, None
    for reading in readings(lines):
        verdict = judge(history, reading, config)
        start = reading.loss if start is None else start
        for rule in history.streaks:
            if math.isnan(rules.get(rule, 0.0)):
                rules[rule] = reading.step
        if verdict.word != "healthy" and math.isnan(warning):
            warning = reading.step
        if math.isnan(trouble):
            loss = reading.loss / start
            trouble = reading.step if verdict.is_trouble else math.nan
    return Seen(rules, warning, trouble, loss)


def rows_of(case: str, found: Sequence[Seen]) -> list[Row]:
    def row(metric: str, unit: str, values: Sequence[float]) -> Row:
        there = [value for value in values if not math.isnan(value)]
        return {
            "case": case,
            "metric": metric,
            "unit": unit,
            "ours": statistics.median(there) if there else None,
            "reference": None,
            "reference_name": None,
            "ratio": None,
            "min": min(there, default=None),
            "max": max(there, default=None),
            "n": len(there),
            "of": len(values),
        }

    rows = [row("warning", "step", [seen.warning for seen in found])]
    rows.append(row("trouble", "step", [seen.trouble for seen in found]))
    rows.append(row("loss at that step", "share of the start", [round(seen.loss, 3) for seen in found]))
    return rows + [row(f"rule: {rule}", "step", [seen.rules[rule] for seen in found]) for rule in RULES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the runs; those that are there are not run again")
    parser.add_argument("--data", type=Path, required=True, help="the demo's shards, such as runs/demo/data")
    parser.add_argument("--parallel", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [(case, seed) for case, seeds in SEEDS.items() for seed in range(seeds)]
    with ThreadPoolExecutor(given.parallel) as pool:
        list(pool.map(lambda job: train(given.out, given.data.resolve(), *job), jobs))
    rows: list[Row] = []
    for case, seeds in SEEDS.items():
        rows += rows_of(case, [look_back(read_metrics(given.out / name_of(case, s))) for s in range(seeds)])
    config = {
        "recipe": "configs/train/tiny-cpu.yaml",
        "changed": list(COMMON),
        "planted": list(PLANTED),
        "steps": 400,
    }
    publish("collapse", config, rows, is_whole=True)


if __name__ == "__main__":
    main()
