"""DeepSpeed's own launcher over two hosts: a hostfile, pdsh, an sshd on each, a rank on each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.errors import EXIT_LOST_PEER
from launch.config import dump_config
from launch.train import run_train
from pretrain.config import RunConfig
from tests.distributed.test_ranks import curve, everything_of
from tests.distributed.test_supervised import last_step
from tests.servers.hosts import LINK, Host, Ssh, need
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 15.0
STARTED_WITHIN_S = 240.0  # DeepSpeed is imported by three processes before a rank's is; machines may be busy


@pytest.fixture(autouse=True)
def pdsh() -> None:
    need("pdsh")


def config_of(dataset: Path, out: Path, stage: int, steps: int) -> RunConfig:
    train = {
        "global_batch": 12,
        "micro_batch": 2,
        "precision": "fp32",
        "steps": steps,
        "checkpoint_every": 10,
    }
    strategy = {"kind": "deepspeed", "zero_stage": stage, "timeout_s": TIMEOUT_S}
    return tiny_config(dataset, out, train=train, strategy=strategy, data={"workers": 1})


@dataclass(frozen=True)
class Launched:
    """DeepSpeed's launcher at work on the first host. printed: the file of what it and all ranks print."""

    process: subprocess.Popen[str]
    printed: Path

    def until(self, is_so: Callable[[], bool], seconds: float = STARTED_WITHIN_S) -> None:
        deadline_s = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.printed.read_text()
            assert time.monotonic() < deadline_s, self.printed.read_text()
            time.sleep(0.05)

    def end(self) -> None:
        """With its ssh, by SIGKILL: of other signals it makes a `pkill -f` on every host it reaches."""
        if self.process.poll() is None:
            for each in everything_of(self.process):
                each.kill()
        self.process.wait()


def launch(config: RunConfig, hosts: tuple[Host, Host], ssh: Ssh) -> Launched:
    """The command of docs/operate.md; ssh's settings, which a user has in ~/.ssh, are given to pdsh."""
    out = Path(config.out)
    given, hostfile, variables = out / "given.yaml", out / "hostfile", out / "deepspeed_env"
    given.write_text(dump_config(config))
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    variables.write_text(f"GLOO_SOCKET_IFNAME={LINK}\n")
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    job = [
        "--hostfile",
        str(hostfile),
        "--master_addr",
        hosts[0].address,
        "--launcher",
        "pdsh",
        "--no_ssh_check",
    ]
    printed = out / "printed"
    with printed.open("ab") as file:
        process = subprocess.Popen(
            hosts[0].command(deepspeed, *job, "--module", "launch", "train", str(given)),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PDSH_SSH_ARGS_APPEND": f"-F {ssh.config}", "DS_ENV_FILE": str(variables)},
        )
    return Launched(process, printed)


def ranks_on(host: Host) -> set[str]:
    """RANK of each process of foreframe on a host."""
    found = set()
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if words[2:4] == [b"-m", b"launch"]:
            found |= {each[5:].decode() for each in variables if each.startswith(b"RANK=")}
    return found


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rank_on_each_of_two_hosts_takes_the_steps_of_two_ranks_on_one(
    small_dataset: Path,
    tmp_path: Path,
    hosts: tuple[Host, Host],
    ssh: Ssh,
    tmp_path_factory: pytest.TempPathFactory,
    stage: int,
) -> None:
    whole = run_train(
        config_of(small_dataset, tmp_path_factory.mktemp("whole"), stage, 20), nproc=2, quiet=True
    ).run
    launched = launch(config_of(small_dataset, tmp_path, stage, 20), hosts, ssh)
    try:
        launched.until(lambda: [ranks_on(host) for host in hosts] == [{"0"}, {"1"}])
        assert launched.process.wait(STARTED_WITHIN_S) == 0, launched.printed.read_text()
    finally:
        launched.end()
    for host in hosts:
        (session,) = ssh.sessions(host)
        assert (session.address, session.exit_code) == (host.address, 0)
    assert "Traceback" not in launched.printed.read_text()
    assert curve(tmp_path / "tiny") == curve(whole)


def test_a_cut_link_ends_both_ranks_and_the_same_command_goes_on_when_it_is_back(
    small_dataset: Path,
    tmp_path: Path,
    hosts: tuple[Host, Host],
    ssh: Ssh,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """DeepSpeed's launcher does not see the end of the rank that is cut off, and has to be ended."""
    steps = 300
    whole = run_train(
        config_of(small_dataset, tmp_path_factory.mktemp("whole"), 1, steps), nproc=2, quiet=True
    ).run
    config, run = config_of(small_dataset, tmp_path, 1, steps), tmp_path / "tiny"
    launched = launch(config, hosts, ssh)
    try:
        launched.until(lambda: last_step(run) >= 20)
        hosts[1].unplug()
        launched.until(lambda: all(ssh.sessions(host) for host in hosts), TIMEOUT_S + 90)
        assert [[each.exit_code for each in ssh.sessions(host)] for host in hosts] == [[EXIT_LOST_PEER]] * 2
        assert [ranks_on(host) for host in hosts] == [set(), set()]
        assert last_step(run) < steps
    finally:
        launched.end()
    printed = launched.printed.read_text()
    assert "(strategy.timeout_s), the rank on other machines may be gone or cut off" in printed
    assert "Traceback" not in printed, printed
    hosts[1].plug_in()
    again = launch(config, hosts, ssh)
    try:
        assert again.process.wait(STARTED_WITHIN_S) == 0, again.printed.read_text()
    finally:
        again.end()
    assert [[each.exit_code for each in ssh.sessions(host)] for host in hosts] == [[EXIT_LOST_PEER, 0]] * 2
    printed = again.printed.read_text()
    assert "resumed from" in printed
    assert "Traceback" not in printed, printed
    assert curve(run) == curve(whole)
