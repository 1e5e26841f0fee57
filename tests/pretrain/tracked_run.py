"""A run for trackers to tell of, and steps of it."""

from __future__ import annotations

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
