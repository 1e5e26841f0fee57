"""This machine as a place: what it lacks is told before anything is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UsageError
from launch.config import dump_config
from launch.submit.local import LocalPlace
from launch.submit.submission import Asked, make_job, submit
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]


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


def test_a_job_on_this_machine_runs_to_its_end_under_supervision(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, to a run that knows which code it is of, and goes on with the next one."""
    here = tmp_path
    monkeypatch.chdir(here)
    config = tiny_config(small_dataset, here / "runs", name="one", train={"steps": 2})
    (here / "run.yaml").write_text(dump_config(config))
    words = [sys.executable, "-m", "launch", "submit", "run.yaml", "--on", "local"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("frozen runs/one/submissions/001\n")
    run = here / "runs/one"
    assert json.loads((run / "result.json").read_text())["step"] == 2
    assert json.loads((run / "restarts.jsonl").read_text())["kind"] == "done"
    command = json.loads((run / "provenance.json").read_text())["command"]
    assert Path(command[0]).is_relative_to(run / "submissions/001/code"), "the frozen code"
    again = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0 and "already finished" in again.stdout
