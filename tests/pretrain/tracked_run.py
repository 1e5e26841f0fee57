"""A run for trackers to tell of, and steps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.tracking.base import DatasetFacts, RunFacts, Tracker

FACTS = RunFacts(
    name="tiny",
    params={"seed": "0", "objective.masks": "blocks 8; blocks 2", "init.weights": "s3://ann:pw@bucket/x"},
    description="What it is.",
    tags={"commit": "abc123", "world_size": "2"},
    datasets=(DatasetFacts("demo", "/data/demo", "f00d", 160),),
)


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log_metrics(step, {"loss": 1.0 / step, "optim/lr": 1e-3, "batch_digest": f"d{step}"})


def client_of(run: Path) -> Any:
    from pretrain.tracking.mlflow import local_uri, make_client

    return make_client(local_uri(run))


def run_id(run: Path) -> str:
    return str(json.loads((run / "mlflow_run.json").read_text())["run_id"])


def get_run(run: Path) -> Any:
    return client_of(run).get_run(run_id(run))


def history(run: Path, key: str) -> list[int]:
    """The steps of a curve, as they stand in the store."""
    return [point.step for point in client_of(run).get_metric_history(run_id(run), key)]
