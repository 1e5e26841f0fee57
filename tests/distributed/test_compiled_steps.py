"""Compiled blocks under DeepSpeed: the steps that blocks take that are not compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.train import run_train
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.rank_jobs import BATCH, on_ranks
from tests.distributed.test_same_step import job_of
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"strategy": {"zero_stage": 0}},
    "stage 1": {},
    "stage 2": {"strategy": {"zero_stage": 2}},
    "blocks computed again": {"strategy": {"zero_stage": 2, "activation_checkpointing": True}},
    "bf16": {"train": {"precision": "bf16"}},
    "bf16, stage 2, computed again": {
        "strategy": {"zero_stage": 2, "activation_checkpointing": True},
        "train": {"precision": "bf16"},
    },
}


def test_every_stage_but_3_takes_the_steps_of_one_process_that_compiles_nothing(
    small_dataset: Path, tmp_path: Path
) -> None:
    run = run_train(tiny_config(small_dataset, tmp_path / "single", train=BATCH), quiet=True).run
    losses = [line["loss"] for line in read_metrics(run)]
    jobs = []
    for case in CASES.values():
        train = {**case.get("train", {}), "compile": "blocks"}
        jobs.append(job_of(small_dataset, tmp_path, strategy=case.get("strategy", {}), train=train))
    for name, found in zip(CASES, on_ranks(2, tmp_path, jobs), strict=True):
        assert found["compiles"] and found["ema_equal"], name
        assert found["losses"] == pytest.approx(losses, rel=2e-2 if "bf16" in name else 2e-5), name
        assert found["norms_off"] < (2e-2 if "bf16" in name else 1e-3), name
        assert found["graphs"][1:] == [0] * (BATCH_STEPS - 1), f"{name}: none after the first step"


BATCH_STEPS = int(BATCH["steps"])
