"""What probes cost: `python -m benchmarks.probe --data runs/demo/data`, on the shards of `make demo`.

While training: the tiny recipe on two ranks, one run; a probing's stall against the steps around it, so that
both are of the same machine at the same time. The first probing also decodes the clips and runs the untrained
encoder. Offline: attentive heads of k learning rates in one pass over the clips, against k passes of one, by
turns; with tokens kept on disk, and with clips encoded again each epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Quiet, Row, publish, row, tell
from launch.config import read_config
from launch.train import run_train
from pretrain.checkpoint import untrained_encoder
from pretrain.config import RunConfig
from pretrain.probe.classify import Heads, Labelled, by_attention
from pretrain.probe.clips import choose, open_splits, probe_clips
from pretrain.probe.tokens import Looker, TokenSource

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "tiny-cpu.yaml"
RANKS, PROBINGS, EVERY = 2, 6, 15
LRS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
CLASSES, EPOCHS = 4, 4


def recipe(data: str, *more: str) -> RunConfig:
    return read_config(str(RECIPE), [f"data.shards={data}", "tracker.kind=jsonl", *more], RunConfig)


def while_training(data: str, out: Path) -> list[Row]:
    """Stalls of one run against its own steps, and the share of time at the recipe's own probe.every."""
    steps = PROBINGS * EVERY
    changes = [f"out={out}", f"train.steps={steps}", f"probe.every={EVERY}", "train.log_every=1"]
    changes += ["health.every=1000", "train.checkpoint_every=1000", "optim.warmup_steps=10"]
    run = run_train(recipe(data, *changes), nproc=RANKS, quiet=True).run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stalls = [line["perf/probe_ms"] for line in lines if "perf/probe_ms" in line]
    probed = {line["step"] for line in lines if "perf/probe_ms" in line}
    plain = [line["perf/step_ms"] for line in lines if "perf/step_ms" in line and line["step"] not in probed]
    step_ms = statistics.median(plain[EVERY // 2 :])
    every = recipe(data).probe.every
    assert every is not None and len(stalls) == PROBINGS, "each probing is logged"
    later = [stall / step_ms for stall in stalls[1:]]
    told: dict[str, Any] = {"case": "while training, tiny recipe on 2 ranks"}
    rows = [
        row("", "the first probing", "steps", [stalls[0] / step_ms]),
        row("", "a later probing", "steps", later),
        row("", f"share of time, one each {every} steps", "%", [100 * steps / every for steps in later]),
    ]
    return [each | told for each in rows]


def side_by_side(data: str, folder: Path, turns: int, quiet: Quiet) -> list[Row]:
    """k learning rates in one pass against k passes, kept and made again."""
    config = recipe(data)
    encoder = untrained_encoder(config)
    width, depth, heads, _ = config.model.encoder.shape
    del depth
    readers = open_splits(data)
    chosen = {split: choose(reader, 96, 0, split) for split, reader in readers.items()}
    rows = []
    for case, kept in (("tokens kept on disk", folder), ("clips encoded again each epoch", None)):
        found, sources = {}, {}
        for split, reader in readers.items():
            looker = Looker(reader, config.data, {"": encoder})
            sources[split] = TokenSource(looker, None if kept is None else kept / split)
            found[split] = probe_clips(
                looker, chosen[split], config.grid, lambda: None, keeps_places=False, source=sources[split]
            )
        counts = {split: len(found[split].videos) for split in found}
        rng = np.random.default_rng(0)  # what the labels are costs nothing
        labelled = Labelled(
            [str(number) for number in range(CLASSES)],
            np.arange(counts["train"]),
            np.arange(counts["eval"]),
            rng.integers(0, CLASSES, counts["train"]),
            rng.integers(0, CLASSES, counts["eval"]),
            found["train"].videos,
            (),
        )

        def seconds(lrs: tuple[float, ...], data: Labelled = labelled, of: Any = (sources, found)) -> float:
            how = Heads(epochs=EPOCHS, lrs=lrs, weight_decays=(0.1,))
            train, evaluation = ((of[0][split], of[1][split]) for split in ("train", "eval"))
            began = time.perf_counter()
            by_attention(data, train, evaluation, {"": (width, heads)}, how, 0, torch.device("cpu"))
            return time.perf_counter() - began

        seconds(LRS)  # the first one also makes what later ones find made
        together, apart = [], []
        for turn in range(turns):
            quiet.wait()
            tell(f"{case}, turn {turn + 1} of {turns}")
            together.append(1 / seconds(LRS))
            apart.append(1 / sum(seconds((lr,)) for lr in LRS))
        name = f"{len(LRS)} passes of one"
        rows.append(
            row(f"attentive, {len(LRS)} learning rates, {case}", "probes", "1/s", together, apart, name)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="runs/demo/data")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--quiet-s", type=float, default=600, help="at most so long it waits for a quiet machine"
    )
    asked = parser.parse_args()
    quiet = Quiet(asked.quiet_s)
    with tempfile.TemporaryDirectory() as folder:
        quiet.wait()
        tell("while training")
        rows = while_training(asked.data, Path(folder))
        rows += side_by_side(asked.data, Path(folder) / "tokens", asked.turns, quiet)
    config = {
        "recipe": RECIPE.stem,
        "ranks": RANKS,
        "probings": PROBINGS,
        "turns": asked.turns,
        "epochs": EPOCHS,
        "busy_with_other_work": quiet.loads,
    }
    publish("probe", config, rows, is_whole=True)


if __name__ == "__main__":
    main()
