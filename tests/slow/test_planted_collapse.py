"""The experiment that is shipped to show a collapse: it ends with exit code 5, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.synthetic import render_videos
from launch.config import read_config, shipped_config
from launch.data import run_shard
from launch.demo import data_config
from pretrain.config import RunConfig
from pretrain.events import read_events
from pretrain.tracking.jsonl import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = shipped_config("experiments/collapse-planted.yaml")


@pytest.mark.timeout(900)
def test_the_planted_collapse_ends_with_exit_code_5(tmp_path: Path) -> None:
    render_videos(tmp_path / "videos", 60, seed=0)
    run_shard(data_config(tmp_path, None, 60))
    command = [sys.executable, "-m", "launch", "train", str(CONFIG), f"out={tmp_path}"]
    done = subprocess.run(
        [*command, f"data.shards={tmp_path / 'data'}", "tracker.kind=jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 5, done.stdout[-2000:] + done.stderr[-2000:]
    assert "every clip gets nearly the same" in done.stderr + done.stdout
    run = tmp_path / "collapse-planted"
    lines = read_metrics(run)
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"], "the loss has never looked better"
    assert [row["response"] for row in read_events(run)][-1] == "stopped"


def test_only_the_target_is_another_than_in_the_demo() -> None:
    planted, demo = (
        read_config(path, [], RunConfig) for path in (CONFIG, shipped_config("train/tiny-cpu.yaml"))
    )
    assert planted.model == demo.model and planted.objective == demo.objective
    assert planted.optim == demo.optim and planted.augment == demo.augment
    assert not planted.target.stop_gradient
