"""A setting that may change when a run goes on, over two ranks that the command has started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import ConfigError
from launch.train import run_train
from pretrain.checkpoint import newest_whole
from pretrain.config import RunConfig
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed


def config_of(dataset: Path, out: Path, **changes: Any) -> RunConfig:
    train = {"global_batch": 4, "micro_batch": 2, "precision": "fp32", "steps": 2, **changes.get("train", {})}
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    optim = {"schedule_steps": 100, **changes.get("optim", {})}
    return tiny_config(dataset, out, train=train, strategy=strategy, optim=optim)


def test_an_allowed_change_is_allowed_on_every_rank(small_dataset: Path, tmp_path: Path) -> None:
    """Each rank compares the checkpoint's own settings with those that it was started with."""
    run = run_train(config_of(small_dataset, tmp_path), nproc=2, quiet=True).run
    changed = config_of(small_dataset, tmp_path, train={"steps": 4}, optim={"lr": 2e-3})
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        run_train(changed, nproc=2, quiet=True)
    assert run_train(changed, nproc=2, quiet=True, allow_change=["optim.lr"]).step == 4
    assert newest_whole(run)[1]["config"]["optim"]["lr"] == 2e-3
