"""`foreframe submit --on slurm` on a real Slurm, with real ranks: the steps of a run without a stop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.attempts import read_attempts
from launch.config import dump_config
from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve
from tests.distributed.test_supervised import last_step
from tests.servers.slurm import Slurm
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.cluster, pytest.mark.distributed]
ROOT = Path(__file__).parents[2]
SOON_S, TRAINED_S = 240.0, 900.0  # on a loaded machine


def submitted(slurm: Slurm, config: RunConfig, *options: str) -> str:
    """Id of the job that the command makes."""
    given = Path(config.out) / "given.yaml"
    given.write_text(dump_config(config))
    command = [sys.executable, "-m", "launch", "submit", str(given), "--on", "slurm", *options]
    done = subprocess.run(command, cwd=ROOT, env=slurm.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((only_submission(config) / "submission.json").read_text())
    assert f"scancel {record['id']}" in done.stdout
    return str(record["id"])


def only_submission(config: RunConfig) -> Path:
    (folder,) = (Path(config.out) / config.name / "submissions").iterdir()
    return folder


def log_of(config: RunConfig) -> str:
    return "".join(path.read_text() for path in sorted((only_submission(config) / "logs").glob("*.log")))


def test_a_run_that_was_submitted_trains(slurm: Slurm, small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 4})
    job = submitted(slurm, config, "--with", "partition=low", "--with", "time_limit_s=600")
    facts = slurm.ended(job, SOON_S, lambda: log_of(config))
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log_of(config)
    assert facts["TimeLimit"] == "00:10:00"
    assert [step for step, _, _ in curve(tmp_path / "tiny")] == [1, 2, 3, 4]


def two_rank_config(dataset: Path, out: Path) -> RunConfig:
    train = {"global_batch": 48, "micro_batch": 2, "steps": 250, "checkpoint_every": 10, "precision": "fp32"}
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    return tiny_config(dataset, out, train=train, strategy=strategy, data={"workers": 1})


def reached(slurm: Slurm, config: RunConfig, job: str, step: int) -> None:
    run = Path(config.out) / config.name
    slurm.until(
        lambda: last_step(run) >= step and slurm.state(job) == "RUNNING", SOON_S, lambda: log_of(config)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_out_of_time_a_rank_killed_and_preempted_a_run_over_two_nodes_has_the_same_steps(
    slurm: Slurm, small_dataset: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = two_rank_config(small_dataset, tmp_path)
    run = tmp_path / "tiny"
    job = submitted(slurm, config, "--nodes", "2", *with_each(["partition=low", "signal_before_s=90"]))

    reached(slurm, config, job, 5)
    minutes = int(slurm.facts(job)["RunTime"].split(":")[1]) + 2
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")  # the signal is due: within 30 s
    slurm.until(lambda: slurm.state(job) == "PENDING", SOON_S, lambda: log_of(config))
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30:00")
    slurm.starts_again(job, SOON_S)
    saved_at = last_step(run)
    assert 5 <= saved_at < 250

    reached(slurm, config, job, saved_at + 15)
    slurm.processes("-m", "launch.train")[-1].kill()
    reached(slurm, config, job, last_step(run) + 15)
    assert slurm.facts(job)["Restarts"] == "1", "ranks start again inside the allocation"

    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.1")
    slurm.starts_again(job, SOON_S, lambda: log_of(config))
    facts = slurm.ended(job, TRAINED_S, lambda: log_of(config))
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "2")

    whole = run_train(
        two_rank_config(small_dataset, tmp_path_factory.mktemp("whole")), nproc=2, quiet=True
    ).run
    assert curve(run) == curve(whole)
    kinds = [each.kind for each in read_attempts(run) if each.node == 0]
    assert [kind for kind in kinds if kind != "LostPeerError"] == ["PreemptedError", "PreemptedError", "done"]
    assert kinds[1] == "LostPeerError"


def with_each(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--with", setting)]
