"""Two hosts, both supervised: the link between them is cut and restored."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipeline.errors import EXIT_LOST_PEER
from launch.attempts import read_attempts
from launch.config import dump_config
from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve
from tests.distributed.test_supervised import last_step
from tests.servers.hosts import LINK, Host
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
STEPS, TIMEOUT_S = 300, 15.0


def config_of(dataset: Path, out: Path) -> RunConfig:
    train = {
        "global_batch": 12,
        "micro_batch": 2,
        "precision": "fp32",
        "steps": STEPS,
        "checkpoint_every": 10,
    }
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": TIMEOUT_S}
    return tiny_config(
        dataset,
        out,
        train={**train, "steps": STEPS, "checkpoint_every": 10},
        strategy=strategy,
        data={"workers": 1},
    )


def start(config: RunConfig, hosts: Sequence[Host], node: int, *options: str) -> subprocess.Popen[str]:
    path = Path(config.out) / "given.yaml"
    path.write_text(dump_config(config))
    job = [
        "--nproc",
        "1",
        "--nnodes",
        "2",
        "--node-rank",
        str(node),
        "--rendezvous",
        f"{hosts[0].address}:29400",
    ]
    return subprocess.Popen(
        hosts[node].command(sys.executable, "-m", "launch", "supervise", str(path), *job, *options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": LINK},
    )


def test_a_cut_link_ends_both_sides_and_the_run_goes_on_when_it_is_back(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = run_train(config_of(small_dataset, tmp_path_factory.mktemp("whole")), nproc=2, quiet=True).run
    config, run = config_of(small_dataset, tmp_path), tmp_path / "tiny"
    both = [start(config, hosts, node, "--backoff-s", "1") for node in range(2)]
    try:
        deadline = time.monotonic() + 120
        while last_step(run) < 20:
            assert time.monotonic() < deadline
            assert all(each.poll() is None for each in both)
            time.sleep(0.05)
        hosts[1].unplug()
        cut_s = time.monotonic()
        while len(read_attempts(run)) < 2:
            assert time.monotonic() - cut_s < TIMEOUT_S + 90
            time.sleep(0.1)
        ended = read_attempts(run)
        assert {(each.node, each.exit_code) for each in ended} == {(0, EXIT_LOST_PEER), (1, EXIT_LOST_PEER)}
        assert all("strategy.timeout_s" in each.sentence for each in ended)
        assert last_step(run) < STEPS
        hosts[1].plug_in()
        printed = [each.communicate(timeout=200)[0] for each in both]
    finally:
        for each in both:
            each.kill()
    assert [each.returncode for each in both] == [0, 0], "\n".join(printed)
    assert "Traceback" not in "".join(printed), "\n".join(printed)
    assert "resumed from" in printed[0]
    assert curve(run) == curve(whole)


def test_the_address_of_another_interface_is_not_waited_for_in_silence(
    small_dataset: Path, tmp_path: Path, hosts: tuple[Host, Host]
) -> None:
    """A machine that finds nobody says whom it waits for; a stop ends the wait."""
    second = start(config_of(small_dataset, tmp_path), hosts, 1)
    assert second.stdout is not None
    assert f"waiting for the first node ({hosts[0].address}:29400)" in second.stdout.readline()
    second.terminate()
    printed = second.communicate(timeout=60)[0]
    assert second.returncode == 75, printed
