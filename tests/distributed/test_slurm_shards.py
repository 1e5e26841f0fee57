"""Sharding over two nodes of a real Slurm: a job that is preempted comes back, to the same data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.format import DATASET_FILE
from tests.data_pipeline.films import noise, write_video
from tests.servers.slurm import Slurm

pytestmark = [pytest.mark.cluster, pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
SOON_S = 300.0  # Ray starts on both nodes; a loaded machine takes long


def foreframe(slurm: Slurm, folder: Path, *words: str) -> None:
    environment = {**slurm.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_preempted_sharding_comes_back_to_the_same_data_set(slurm: Slurm, tmp_path: Path) -> None:
    for number in range(40):
        write_video(tmp_path / "videos" / f"{number:02d}.mp4", noise(48, seed=number))
    cut = ["cut.length_s=1", "cut.stride_s=1"]
    config = [str(ROOT / "configs/data/folder.yaml"), f"sources=[{tmp_path / 'videos'}]", "name=set", *cut]
    place = ["--on", "slurm", "--nodes", "2", "--with", "partition=low", "--with", "cpus_per_node=2"]
    foreframe(slurm, tmp_path, "submit", *config, f"out={tmp_path / 'preempted'}", *place)
    folder = tmp_path / "jobs" / "set" / "submissions" / "001"
    job = str(json.loads((folder / "submission.json").read_text())["id"])

    def log() -> str:
        return "".join(path.read_text() for path in sorted((folder / "logs").glob("*.log")))

    slurm.until(lambda: "index " in log(), SOON_S, log)
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.1")
    slurm.starts_again(job, SOON_S, log)
    assert not (tmp_path / "preempted" / DATASET_FILE).exists()
    facts = slurm.ended(job, SOON_S, log)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), log()

    foreframe(slurm, tmp_path, "shard", *config, f"out={tmp_path / 'whole'}")
    preempted, whole = (
        json.loads((tmp_path / name / DATASET_FILE).read_text()) for name in ("preempted", "whole")
    )
    assert preempted["fingerprint"] == whole["fingerprint"]
    assert preempted["num_clips"] == whole["num_clips"]
