"""Jobs sent to a Ray cluster of two raylets: sharding, training, a node lost, a stop."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from launch.config import dump_config
from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.many_clips import many_clips
from tests.distributed.test_ranks import curve
from tests.distributed.test_ray_nodes import ENDS_S, ROOT, alone, films
from tests.servers.ray_cluster import TwoRaylets, two_raylets
from tests.small_dataset import tiny_config

__all__ = ["alone", "films"]  # fixtures

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TwoRaylets]:
    (tmp_path / "home").mkdir()
    with two_raylets(tmp_path / "home") as found:
        yield found


class Submitted:
    """A job that `foreframe submit --on ray` handed over."""

    def __init__(self, cluster: TwoRaylets, folder: Path, config: Path, *options: str) -> None:
        self._cluster = cluster
        place = ["--on", "ray", "--with", f"address={cluster.address}", "--with", f"python={sys.executable}"]
        words = [sys.executable, "-m", "launch", "submit", str(config), *place, *options]
        self._environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            words,
            cwd=folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=ENDS_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = {line.split()[0]: line for line in done.stdout.splitlines() if line}
        self.stop_command = told["stop"].removeprefix("stop").split()
        self.name = self.stop_command[-1]

    def ask(self, what: str, *options: str) -> str:
        words = ["job", what, "--address", self._cluster.address, *options, self.name]
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            cwd=self._cluster.home, env=self._environment, capture_output=True, text=True, timeout=ENDS_S,
            check=False,
        ).stdout  # fmt: skip

    def stop(self) -> None:
        assert self.stop_command[:3] == ["ray", "job", "stop"]
        self.ask("stop", "--no-wait")

    def status(self) -> str:
        from ray.job_submission import JobSubmissionClient

        token = (self._cluster.home / ".ray" / "auth_token").read_text()
        client = JobSubmissionClient(self._cluster.address, headers={"Authorization": f"Bearer {token}"})
        return str(client.get_job_status(self.name).value)

    def end(self) -> str:
        deadline_s = time.monotonic() + ENDS_S
        while (found := self.status()) not in ENDED:
            assert time.monotonic() < deadline_s, self.ask("logs")
            time.sleep(1)
        return found


def test_sharding_as_a_job_is_sharding_here(
    cluster: TwoRaylets, films: Path, alone: str, tmp_path: Path
) -> None:
    """Sources and `out` are relative to where it was submitted, and the nodes work elsewhere."""
    (tmp_path / "here").mkdir()
    shutil.copytree(films, tmp_path / "here" / "clips")
    config = many_clips(Path("clips"), Path("out"))
    (tmp_path / "here" / "data.yaml").write_text(dump_config(config))
    job = Submitted(cluster, tmp_path / "here", tmp_path / "here" / "data.yaml")
    assert job.end() == "SUCCEEDED", job.ask("logs")
    assert read_info(Storage(tmp_path / "here" / "out")).fingerprint == alone


def test_a_job_that_loses_a_node_or_is_stopped_goes_on(
    cluster: TwoRaylets, films: Path, alone: str, tmp_path: Path
) -> None:
    config = many_clips(films, tmp_path / "out")
    (tmp_path / "data.yaml").write_text(dump_config(config))

    def until_parts(count: int) -> None:
        deadline_s = time.monotonic() + ENDS_S
        while len(list((tmp_path / "out").glob("parts/*.tar"))) < count:
            assert time.monotonic() < deadline_s, job.ask("logs")
            time.sleep(0.05)

    job = Submitted(cluster, tmp_path, tmp_path / "data.yaml")
    until_parts(1)
    job.stop()
    assert job.end() == "STOPPED", job.ask("logs")
    assert not (tmp_path / "out" / "dataset.json").exists()
    job = Submitted(cluster, tmp_path, tmp_path / "data.yaml")
    until_parts(2)
    cluster.lose(1)
    assert job.end() == "SUCCEEDED", job.ask("logs")
    assert read_info(Storage(tmp_path / "out")).fingerprint == alone


def run_of(dataset: Path, out: Path) -> RunConfig:
    train = {"global_batch": 4, "micro_batch": 2, "precision": "fp32", "steps": 60, "checkpoint_every": 1000}
    return tiny_config(dataset, out, train=train, strategy={"kind": "deepspeed", "zero_stage": 1})


def test_a_run_trains_on_two_nodes_stops_with_a_save_and_goes_on(
    cluster: TwoRaylets, small_dataset: Path, tmp_path: Path
) -> None:
    whole = run_train(run_of(small_dataset, tmp_path / "whole"), nproc=2, quiet=True).run
    config, run = run_of(small_dataset, tmp_path / "runs"), tmp_path / "runs" / "tiny"
    (tmp_path / "train.yaml").write_text(dump_config(config))
    job = Submitted(cluster, tmp_path, tmp_path / "train.yaml", "--nodes", "2")
    deadline_s = time.monotonic() + ENDS_S
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline_s and job.status() not in ENDED, job.ask("logs")
        time.sleep(0.1)
    job.stop()
    assert job.end() == "STOPPED", job.ask("logs")
    assert "saved at step" in job.ask("logs")
    again = Submitted(cluster, tmp_path, tmp_path / "train.yaml", "--nodes", "2")
    assert again.end() == "SUCCEEDED", again.ask("logs")
    assert curve(run) == curve(whole)
