"""Training submitted over ssh to two hosts: the whole way, and what may befall it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve
from tests.servers.hosts import Host, Ssh
from tests.servers.submitted import left_on, submission, submit
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
TIMEOUT_S = 60.0  # machines may be busy


def config_of(dataset: Path, out: Path, steps: int = 20) -> RunConfig:
    train = {
        "global_batch": 12,
        "micro_batch": 2,
        "precision": "fp32",
        "steps": steps,
        "checkpoint_every": 10,
    }
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": TIMEOUT_S}
    return tiny_config(dataset, out, train=train, strategy=strategy)


def test_two_hosts_take_the_steps_of_two_ranks_on_one(
    small_dataset: Path,
    tmp_path: Path,
    hosts: tuple[Host, Host],
    ssh: Ssh,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole = run_train(config_of(small_dataset, tmp_path_factory.mktemp("whole")), nproc=2, quiet=True).run
    config = config_of(small_dataset, tmp_path)
    job = submit(config, hosts, ssh)
    assert job.end() == 0, job.text
    assert "Traceback" not in job.text
    assert curve(tmp_path / "tiny") == curve(whole)
    assert [left_on(host) for host in hosts] == [[], []]
    assert (submission(config) / "logs" / "node-1.exit").read_text() == "0\n"
    print(job.text)
    print((submission(config) / "node.sh").read_text())
    print((submission(config) / "logs" / "node-1.log").read_text())
    print((submission(config) / "submission.json").read_text())
