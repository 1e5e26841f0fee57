"""Jobs submitted over ssh to two hosts: the whole way, and what may befall it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from launch.attempts import read_attempts
from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve
from tests.distributed.test_supervised import last_step
from tests.servers.hosts import Host, Ssh
from tests.servers.submitted import commands_on, nothing_is_left, submission, submit, type_on
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 300
LATE_S = 400.0  # machines may be busy


def config_of(dataset: Path, out: Path, timeout_s: float = 60.0) -> RunConfig:
    train = {
        "global_batch": 12,
        "micro_batch": 2,
        "precision": "fp32",
        "steps": STEPS,
        "checkpoint_every": 10,
    }
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": timeout_s}
    return tiny_config(dataset, out, train=train, strategy=strategy)


@pytest.fixture(scope="module")
def whole(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run over two ranks on one machine, without a stop."""
    return run_train(config_of(small_dataset, tmp_path_factory.mktemp("whole")), nproc=2, quiet=True).run


def ranks_of(host: Host) -> list[int]:
    """The pids of ranks on a host."""
    return [pid for pid, words in commands_on(host).items() if "launch.train" in words]


def test_a_killed_rank_and_a_stop_leave_the_curve_as_it_is_on_one_machine(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh, whole: Path
) -> None:
    config, run = config_of(small_dataset, tmp_path), tmp_path / "tiny"
    detached = submit(config, hosts, ssh, "--detach")
    assert detached.end() == 0, detached.text
    assert f"stop   foreframe stop {run}" in detached.text
    follower = type_on(hosts[0], ["status", str(run), "--watch"], tmp_path)  # something to wait beside
    try:
        follower.until(lambda: last_step(run) >= 20, LATE_S)
        os.kill(*ranks_of(hosts[1]), signal.SIGKILL)
        follower.until(lambda: len(read_attempts(run)) == 2, LATE_S)
        killed = last_step(run)
        follower.until(lambda: last_step(run) >= killed + 15, LATE_S)
    finally:
        follower.process.kill()
        follower.process.wait()
    stopped = type_on(hosts[0], ["stop", str(run), "--wait"], tmp_path)
    assert stopped.end() == 0, stopped.text
    logs = submission(config) / "logs"
    assert [(logs / f"node-{node}.exit").read_text() for node in (0, 1)] == ["75\n", "75\n"], stopped.text
    assert last_step(run) < STEPS
    assert nothing_is_left(hosts)

    again = submit(config, hosts, ssh)
    assert again.end(LATE_S) == 0, again.text
    assert "resumed from" in again.text and "Traceback" not in again.text
    assert curve(run) == curve(whole)
    assert nothing_is_left(hosts)


def test_a_cut_link_is_told_and_the_run_goes_on_when_it_is_back(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh, whole: Path
) -> None:
    config, run = config_of(small_dataset, tmp_path, timeout_s=30.0), tmp_path / "tiny"
    job = submit(config, hosts, ssh)
    job.until(lambda: last_step(run) >= 20, LATE_S)
    hosts[1].unplug()
    job.until(lambda: {each.node for each in read_attempts(run)} == {0, 1}, LATE_S)
    assert {each.exit_code for each in read_attempts(run)} == {6}
    job.until(lambda: f"{hosts[1].address}: it cannot be reached" in job.text, LATE_S)
    hosts[1].plug_in()
    job.until(lambda: f"{hosts[1].address} is back" in job.text, LATE_S)
    assert job.end(LATE_S) == 0, job.text
    assert curve(run) == curve(whole)
    assert nothing_is_left(hosts)


def test_ctrl_c_saves_on_all_hosts_and_ends_with_what_training_ends_with(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh
) -> None:
    config, run = config_of(small_dataset, tmp_path), tmp_path / "tiny"
    job = submit(config, hosts, ssh)
    job.until(lambda: last_step(run) >= 5, LATE_S)
    job.process.send_signal(signal.SIGINT)
    assert job.end(LATE_S) == 75, job.text
    assert "asking for a save and an end" in job.text
    assert nothing_is_left(hosts)


def test_a_follower_that_is_killed_leaves_the_run_alone(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh
) -> None:
    """A laptop that is closed."""
    config, run = config_of(small_dataset, tmp_path), tmp_path / "tiny"
    job = submit(config, hosts, ssh)
    job.until(lambda: last_step(run) >= 5, LATE_S)
    job.process.kill()
    job.process.wait()
    seen = last_step(run)
    status = type_on(hosts[0], ["status", str(run), "--watch"], tmp_path)
    try:
        status.until(lambda: last_step(run) >= seen + 20, LATE_S)
    finally:
        status.process.kill()
        status.process.wait()
    assert [len(ranks_of(host)) for host in hosts] == [1, 1]
    ended = type_on(hosts[0], ["stop", str(run), "--now"], tmp_path)
    assert ended.end() == 0, ended.text
    assert nothing_is_left(hosts)


def test_a_refused_host_leaves_no_folder_and_ends_with_2(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], ssh: Ssh
) -> None:
    config = config_of(small_dataset, tmp_path)
    hosts[1].hide(small_dataset)
    job = submit(config, hosts, ssh)
    assert job.end() == 2, job.text
    told = f"error: {hosts[1].address}: {small_dataset}/dataset.json is not there"
    assert told in job.text
    assert not (tmp_path / "tiny").exists()
