"""Two hosts with an sshd each: what is asked of them, and jobs that are started, stopped, lost, interrupted.

The jobs are scripts of a few lines; training over ssh is in tests/distributed/test_ssh.py.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest

from data_pipeline.errors import LostPeerError, UsageError
from data_pipeline.format import DATASET_FILE
from launch import remote
from launch.submit.base import Job
from launch.submit.freeze import freeze, next_folder, update_record
from launch.submit.node_process import read_nodes, start
from launch.submit.places import read_place
from launch.submit.ssh import SshPlace, check, follow, nodes
from launch.submit.ssh.check import check_hosts
from launch.submit.ssh.start import start_nodes
from launch.submit.stop import stop
from pretrain.config import RunConfig
from tests.servers.hosts import Host, Ssh
from tests.servers.submitted import commands_on, left_on
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.cluster
SOON_S = 60.0
PATIENT = "trap 'echo saved; exit 75' TERM; echo node $1 meets at $2; while :; do sleep 0.05; done"


@dataclass(frozen=True)
class Cluster:
    """Two hosts as a person at the first of them has them: a shared folder, and ssh to both."""

    hosts: tuple[Host, Host]
    ssh: Ssh
    folder: Path

    @property
    def names(self) -> list[str]:
        return [host.address for host in self.hosts]

    def place(self, *settings: str, names: list[str] | None = None) -> SshPlace:
        given = [f"hosts=[{','.join(names or self.names)}]", f"ssh_config={self.ssh.config}", *settings]
        found = read_place("ssh", given)
        assert isinstance(found, SshPlace)
        return found

    def job(self) -> Job:
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "data" / DATASET_FILE).touch()
        config: RunConfig = tiny_config(self.folder / "data", self.folder / "runs", name="one")
        return Job("train", "one", config, next_folder(config), self.folder)

    def frozen(self, script: str, *settings: str) -> tuple[SshPlace, Job]:
        """A job that runs another script than training's."""
        place = self.place(*settings)
        job = freeze(self.job(), place)
        (job.folder / "node.sh").write_text(script)
        return place, job

    def log(self, job: Job, node: int) -> str:
        return (job.logs / f"node-{node}.log").read_text()


@pytest.fixture
def cluster(hosts: tuple[Host, Host], ssh: Ssh, tmp_path: Path) -> Iterator[Cluster]:
    """The test is on the first host."""
    with hosts[0].entered():
        yield Cluster(hosts, ssh, tmp_path)


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def nothing_runs(cluster: Cluster) -> bool:
    return not any(left_on(host) for host in cluster.hosts)


@contextmanager
def interrupted(is_time: Callable[[], bool]) -> Iterator[None]:
    """A Ctrl-C in this process as soon as it is time."""

    def wait() -> None:
        until(is_time)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


@contextmanager
def interrupted_when_followed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ctrl-C once the log is being shown."""
    is_shown, show = threading.Event(), follow.Log.show

    def shown(log: follow.Log, *, to_the_end: bool = False) -> None:
        show(log, to_the_end=to_the_end)
        is_shown.set()

    monkeypatch.setattr(follow.Log, "show", shown)
    with interrupted(is_shown.is_set):
        yield


def test_hosts_that_are_right_are_asked_and_nothing_is_written(cluster: Cluster) -> None:
    check_hosts(cluster.place(), cluster.job())
    assert [path.name for path in cluster.folder.iterdir()] == ["data"]
    assert [path.name for path in (cluster.folder / "data").iterdir()] == [DATASET_FILE]


def test_all_that_is_wrong_on_any_host_is_one_error(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = cluster.names[1]
    metadata = next(path for path in distribution("deepspeed").files or () if path.name == "METADATA")
    installed = Path(str(metadata.locate()))
    older = tmp_path_factory.mktemp("older") / "METADATA"
    older.write_text(installed.read_text().replace("\nVersion: 0.19.8", "\nVersion: 0.1.2", 1))
    cluster.hosts[1].replace(installed, older)
    cluster.hosts[1].hide(cluster.folder)
    monkeypatch.setattr(check, "SEEN_WITHIN_S", 0.5)
    with pytest.raises(UsageError) as raised:
        check_hosts(cluster.place(names=[*cluster.names, "no-such-host.invalid"]), cluster.job())
    told = str(raised.value).splitlines()
    assert told[0] == "3 hosts were asked, and nothing was started:"
    assert told[1].startswith("  no-such-host.invalid: there is no host of that name")
    assert told[2:] == [
        f"  {second}: deepspeed is 0.1.2, here 0.19.8: need the same on every host",
        f"  {second}: {cluster.folder} is another folder there: a file that this machine has written is not "
        "seen; need an out=... that all hosts share under the same path",
        f"  {second}: {cluster.folder}/data/{DATASET_FILE} is not there: need the data under the same path "
        "on every host",
    ]
    assert not (cluster.folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["python=/nowhere/python"], "/nowhere/python is not there, or cannot be run"),
        (["gpus_per_node=2"], "it has 0 GPUs, and a rank is to run on number 1: need a GPU a slot"),
        (["address=10.99.0.11"], "10.99.0.10: 10.99.0.11 is no address of this host: need address=..."),
        (["address=192.0.2.77"], "has no way to 192.0.2.77: Network is unreachable"),
    ],
)
def test_a_setting_that_is_wrong_there_is_told(cluster: Cluster, settings: list[str], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_hosts(cluster.place(*settings), cluster.job())
    assert told in str(raised.value)


def test_a_port_in_use_on_the_first_host_is_told(cluster: Cluster) -> None:
    with socket.create_server((cluster.names[0], 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError) as raised:
            check_hosts(cluster.place(f"port={port}"), cluster.job())
    assert str(raised.value).startswith(f"{cluster.names[0]}: port {port} is in use: need port=...")
    check_hosts(cluster.place(f"port={port}"), cluster.job())


def test_a_job_runs_on_without_who_started_it_until_it_is_stopped(cluster: Cluster) -> None:
    place, job = cluster.frozen(PATIENT)
    start_nodes(place, job)
    update_record(job.folder, state="submitted")
    until(lambda: all("meets" in cluster.log(job, node) for node in (0, 1)))
    assert [process.host for process in read_nodes(job.logs).values()] == cluster.names
    first, second = (cluster.log(job, node).split() for node in (0, 1))
    assert (first[1], second[1]) == ("0", "1") and first[-1] == second[-1]
    assert first[-1].startswith(f"{cluster.names[0]}:")
    said: list[str] = []
    stop(job.run, said.append, waits=True)
    assert said[-1] == "all has ended"
    assert [(job.logs / f"node-{node}.exit").read_text() for node in (0, 1)] == ["75\n", "75\n"]
    assert "saved" in cluster.log(job, 0) and "saved" in cluster.log(job, 1)
    said.clear()
    stop(job.run, said.append)
    assert said == [
        f"node {node} on {name} has ended with exit code 75" for node, name in enumerate(cluster.names)
    ]
    until(lambda: nothing_runs(cluster))


@pytest.mark.slow
def test_a_host_that_cannot_be_reached_when_it_is_stopped_is_told_and_the_other_is_asked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CONNECT_S", 1)
    place, job = cluster.frozen(PATIENT)
    start_nodes(place, job)
    update_record(job.folder, state="submitted")
    until(lambda: all("meets" in cluster.log(job, node) for node in (0, 1)))
    cluster.hosts[1].unplug()
    with pytest.raises(LostPeerError, match=f"{cluster.names[1]}: it cannot be reached"):
        stop(job.run, lambda _: None)
    until(lambda: (job.logs / "node-0.exit").exists())
    cluster.hosts[1].plug_in()
    there = cluster.names[1]  # its neighbours forget only after a while that it was away
    until(lambda: remote.run_on([there], "true", timeout_s=20, ssh_config=place.ssh_config)[there].is_done)
    said: list[str] = []
    stop(job.folder, said.append, now=True)
    assert said[1].startswith(f"node 1 on {cluster.names[1]} has ended with exit code")
    until(lambda: nothing_runs(cluster))


def test_where_one_host_does_not_start_none_is_left_running(cluster: Cluster) -> None:
    place, job = cluster.frozen(PATIENT)
    other = cluster.folder / "edited.py"
    other.write_text("EDITED = True\n")
    cluster.hosts[1].replace(job.code / "pretrain" / "rng.py", other)
    with pytest.raises(UsageError) as raised:
        start_nodes(place, job)
    told = str(raised.value).splitlines()
    assert told[0] == "not all of 2 hosts could be started, and what was is ended:"
    assert told[1].startswith(f"  {cluster.names[1]}: {job.code} holds other code there") and len(told) == 2
    until(lambda: nothing_runs(cluster))
    assert (job.logs / "node-0.exit").exists() and not (job.logs / "node-1.pid").exists()


@pytest.mark.slow
def test_a_ctrl_c_while_hosts_are_started_leaves_none_running(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host runs its node, the other is at it for long: as where Python comes from a slow folder."""
    place, job = cluster.frozen(PATIENT)
    slow = cluster.folder / "slow.py"
    slow.write_text("import time\ntime.sleep(600)\n")
    cluster.hosts[1].replace(job.code / "launch" / "submit" / "node_process.py", slow)
    for limit in ("ASK_S", "END_S", "LEFTOVERS_S"):  # that host cannot even be asked
        monkeypatch.setattr(nodes, limit, 1.0)
    is_half_way = (job.logs / "node-0.log").exists
    with interrupted(is_half_way), pytest.raises(KeyboardInterrupt):
        start_nodes(place, job)
    assert not left_on(cluster.hosts[0]) and not (job.logs / "node-1.pid").exists()
    with pytest.raises(UsageError, match="was called off"):
        start(job.logs, 1, ["true"], "here")


def test_a_job_is_followed_to_its_end(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    place, job = cluster.frozen("echo step 1; sleep 0.3; echo step 2; exit $((4 * (1 - $1)))")
    start_nodes(place, job)
    assert follow.follow(place, job).exit_code == 4
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == ["step 1", "step 2"]


@pytest.mark.slow
def test_ctrl_c_asks_all_hosts_to_save_and_a_second_one_leaves_the_job_alone(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, job = cluster.frozen(PATIENT)
    start_nodes(place, job)
    until(lambda: all("meets" in cluster.log(job, node) for node in (0, 1)))
    with interrupted_when_followed(monkeypatch):
        assert follow.follow(place, job).exit_code == 75
    printed = capsys.readouterr().out
    assert "asking for a save and an end" in printed and "saved" in printed
    until(lambda: nothing_runs(cluster))
    place, job = cluster.frozen(PATIENT)  # another submission of the same run
    start_nodes(place, job)
    until(lambda: all("meets" in cluster.log(job, node) for node in (0, 1)))
    monkeypatch.setattr(follow.Following, "ask_to_stop", lambda self: os.kill(os.getpid(), signal.SIGINT))
    with interrupted_when_followed(monkeypatch):
        assert follow.follow(place, job).exit_code == 130
    assert capsys.readouterr().out.endswith("left alone\n")
    assert all(left_on(host) for host in cluster.hosts)
    update_record(job.folder, state="submitted")
    stop(job.folder, lambda _: None, waits=True)


@pytest.mark.slow
def test_a_host_that_is_gone_is_told_and_the_others_are_asked_to_stop(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOOK_S", 0.2)
    place, job = cluster.frozen(PATIENT)
    start_nodes(place, job)
    until(lambda: all("meets" in cluster.log(job, node) for node in (0, 1)))
    for pid, words in commands_on(cluster.hosts[1]).items():
        if "keep" in words or any("node.sh" in word for word in words):
            os.kill(pid, signal.SIGKILL)
    assert follow.follow(place, job).exit_code == 6
    printed = capsys.readouterr().out
    assert f"node 1 on {cluster.names[1]} is gone: it was killed, or the host started anew" in printed
    assert "asking for a save" in printed
    until(lambda: nothing_runs(cluster))
