"""Writes the golden loss curve anew: `python -m tests.golden.write`. Say in the commit why it moved."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from launch.train import run_train
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config, write_dataset


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "small", {"train": [7, 5, 8, 3], "eval": [5]})
        lines = read_metrics(run_train(tiny_config(data, Path(folder)), quiet=True).run)
    golden = {key: [line[key] for line in lines] for key in ("loss", "batch_digest")}
    path = Path(__file__).with_name("loss_20_steps.json")
    path.write_text(json.dumps({"rel": 1e-4, **golden}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
