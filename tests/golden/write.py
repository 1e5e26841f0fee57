"""Writes the golden numbers anew: `python -m tests.golden.write [losses] [counts]`; without a word, all.

losses: the curve of twenty steps. counts: what a step asks of a GPU. Say in the commit why they moved.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from launch.train import run_train
from pretrain.tracking.jsonl import read_metrics
from tests.counts import GOLDEN as COUNTS
from tests.counts import count_steps, golden_of
from tests.small_dataset import tiny_config, write_dataset


def write_losses() -> Path:
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "small", {"train": [7, 5, 8, 3], "eval": [5]})
        lines = read_metrics(run_train(tiny_config(data, Path(folder)), quiet=True).run)
    golden = {key: [line[key] for line in lines] for key in ("loss", "batch_digest")}
    path = Path(__file__).with_name("loss_20_steps.json")
    path.write_text(json.dumps({"rel": 1e-4, **golden}, indent=1) + "\n")
    return path


def write_counts() -> Path:
    COUNTS.write_text(json.dumps(golden_of(count_steps()), indent=1) + "\n")
    return COUNTS


def main() -> None:
    known = {"losses": write_losses, "counts": write_counts}
    for name in sys.argv[1:] or known:
        print(f"wrote {known[name]()}")


if __name__ == "__main__":
    main()
