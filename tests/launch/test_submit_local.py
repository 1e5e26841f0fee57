"""This machine as a place: what it lacks is told before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UsageError
from launch.submit.local import LocalPlace
from launch.submit.submission import Asked, make_job, submit
from tests.small_dataset import tiny_config


def test_more_gpus_than_there_are_is_no_training_on_the_cpu(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = tiny_config(small_dataset, tmp_path)
    for place in (LocalPlace(gpus_per_node=2), LocalPlace(gpus_per_node=2, ranks_per_node=1)):
        with pytest.raises(UsageError, match="torch sees 1 on this machine"):
            submit(make_job(config, place), place, Asked(), lambda _: None)
    LocalPlace(gpus_per_node=1).check(make_job(config, LocalPlace()))
    assert not (tmp_path / "tiny").exists()
