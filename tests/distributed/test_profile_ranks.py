"""Steps that two ranks record, started by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.train import run_train
from pretrain.trace import REDUCTION
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed


def test_every_rank_leaves_a_trace_and_the_table_holds_them_all(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(
        small_dataset,
        tmp_path,
        train={"global_batch": 4, "micro_batch": 2, "precision": "fp32", "steps": 5},
        strategy={"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60},
    )
    run = run_train(config, nproc=2, quiet=True, profile=2).run
    facts = json.loads((run / "profile" / "table.json").read_text())
    assert [each["rank"] for each in facts["ranks"]] == [0, 1]
    assert {path.name for path in (run / "profile").glob("*.gz")} == {
        each["trace"] for each in facts["ranks"]
    }
    for each in facts["ranks"]:
        assert each["num_steps"] == 2
        assert each["collectives"] >= 1
        assert next(part for part in each["parts"] if part["name"] == REDUCTION)["host_ms"] > 0
