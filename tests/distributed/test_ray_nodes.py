"""Sharding over several machines: equal to one machine's, and what it comes through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from launch.config import dump_config
from tests.distributed.many_clips import many_clips, write_films
from tests.servers.hosts import Host

pytestmark = [pytest.mark.distributed, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
NUM_VIDEOS = 60
ENDS_S = 240.0
# The command with a wait for other nodes of 4 s, where a test is about one that does not come.
QUICK = "import launch.ray_nodes as nodes; nodes.GATHER_S = 4.0\nfrom launch.cli import main\nmain()"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"), NUM_VIDEOS)


@pytest.fixture(scope="module")
def alone(films: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the data set that one machine makes, by the command without nodes."""
    config = many_clips(films, tmp_path_factory.mktemp("alone") / "out")
    path = Path(config.out).parent / "data.yaml"
    path.write_text(dump_config(config))
    subprocess.run([sys.executable, "-m", "launch", "shard", str(path)], cwd=ROOT, check=True, timeout=ENDS_S)
    return read_info(Storage(config.out)).fingerprint


class Nodes:
    """Two nodes of a job, started by hand. home: theirs, with a token of Ray's of its own."""

    def __init__(self, config: DataConfig, home: Path) -> None:
        self.config, self.home, self.running = config, home, list[subprocess.Popen[str]]()
        self.file = home / "data.yaml"
        self.file.write_text(dump_config(config))

    def start(
        self, node: int, at: str, *, script: str | None = None, host: Host | None = None
    ) -> subprocess.Popen[str]:
        what = ["-m", "launch"] if script is None else ["-c", script]
        words = [sys.executable, *what, "shard", str(self.file), "--nnodes", "2", "--node-rank", str(node)]
        words += ["--rendezvous", at]
        process = subprocess.Popen(
            words if host is None else host.command(*words),
            cwd=ROOT,
            env={**os.environ, "HOME": str(self.home), "TERM": "dumb"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def both(self, port: int) -> list[subprocess.Popen[str]]:
        return [self.start(node, f"127.0.0.1:{port}") for node in range(2)]

    def until_parts(self, count: int = 1) -> None:
        """Until there are so many encoded parts."""
        deadline_s = time.monotonic() + ENDS_S
        while len(list(Path(self.config.out).glob("parts/*.tar"))) < count:
            assert time.monotonic() < deadline_s, "no part came"
            assert self.running[-1].poll() is None, self.running[-1].communicate()[0]
            time.sleep(0.05)

    @property
    def fingerprint(self) -> str:
        return read_info(Storage(self.config.out)).fingerprint


@pytest.fixture
def nodes(films: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Of a job on the films; nothing of it is left in the end, or the test fails."""
    found = Nodes(many_clips(films, tmp_path / "out"), tmp_path)
    try:
        yield found
        assert leftovers(found, ENDS_S / 10) == []
    finally:
        for process in leftovers(found, 0.0):
            process.kill()


def leftovers(nodes: Nodes, within_s: float) -> list[psutil.Process]:
    """What runs with this job's home: everything that its nodes started has it."""
    deadline_s = time.monotonic() + within_s
    while True:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(nodes.home) and process.status() != "zombie":
                    left.append(process)
            except psutil.Error:
                continue
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.5)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and what was printed, of each."""
    told = [process.communicate(timeout=ENDS_S)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def below(process: subprocess.Popen[str], is_wanted: Callable[[list[str]], bool]) -> psutil.Process:
    found = [each for each in psutil.Process(process.pid).children(True) if is_wanted(each.cmdline())]
    assert found, [each.cmdline()[:3] for each in psutil.Process(process.pid).children(True)]
    return found[0]


def is_raylet(words: list[str]) -> bool:
    return bool(words) and words[0].endswith("raylet/raylet")


def is_driver(words: list[str]) -> bool:
    return "--ray-address" in words


def test_two_hosts_make_what_one_makes_and_a_cut_link_loses_nothing(
    nodes: Nodes, alone: str, hosts: tuple[Host, Host]
) -> None:
    """Each host has an address of its own; the second is cut off while it encodes."""
    at = f"{hosts[0].address}:29400"
    both = [nodes.start(node, at, host=hosts[node]) for node in range(2)]
    nodes.until_parts(2)
    hosts[1].unplug()
    (first, told), (second, told_second) = ended(both)
    assert first == 0, told
    assert nodes.fingerprint == alone
    assert second == 6, told_second
    assert "was lost" in told_second.replace("\n", " ")


def test_a_node_that_is_killed_comes_back_and_the_set_is_the_same(nodes: Nodes, alone: str) -> None:
    both = nodes.both(free_port())
    nodes.until_parts()
    below(both[1], is_raylet).send_signal(signal.SIGKILL)
    (first, told), (second, told_second) = ended(both)
    assert (first, second) == (0, 0), told + told_second
    assert nodes.fingerprint == alone


@pytest.mark.parametrize("who", ["the first node", "the driver"])
def test_after_kill_9_nothing_is_left_and_the_same_command_goes_on(
    nodes: Nodes, alone: str, who: str
) -> None:
    port = free_port()
    both = nodes.both(port)
    nodes.until_parts(2)
    if who == "the driver":
        below(both[0], is_driver).send_signal(signal.SIGKILL)
    else:
        both[0].send_signal(signal.SIGKILL)
    (first, told), (second, told_second) = ended(both)
    assert first == (6 if who == "the driver" else -signal.SIGKILL), told
    assert second == 6, told_second
    assert leftovers(nodes, 20.0) == []
    again = ended(nodes.both(port))
    assert [code for code, _ in again] == [0, 0], again
    assert nodes.fingerprint == alone


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_stop_ends_all_nodes_and_the_same_command_goes_on(
    nodes: Nodes, alone: str, number: signal.Signals, code: int
) -> None:
    port = free_port()
    both = nodes.both(port)
    nodes.until_parts()
    both[0].send_signal(number)
    found = ended(both)
    assert [each for each, _ in found] == [code, code], found
    assert "the same command goes on" in found[0][1].replace("\n", " ")
    assert [each for each, _ in ended(nodes.both(port))] == [0, 0]
    assert nodes.fingerprint == alone


def test_a_node_that_never_comes_is_named_and_not_waited_for(nodes: Nodes, alone: str) -> None:
    ((code, told),) = ended([nodes.start(0, f"127.0.0.1:{free_port()}", script=QUICK)])
    assert code == 0, told
    assert "1 of 2 nodes not there after 4 s (node-1): begun without" in told.replace("\n", " ")
    assert nodes.fingerprint == alone


def test_a_node_that_comes_late_joins(nodes: Nodes, alone: str) -> None:
    at = f"127.0.0.1:{free_port()}"
    first = nodes.start(0, at, script=QUICK)
    nodes.until_parts()
    (code, told), (second, told_second) = ended([first, nodes.start(1, at)])
    assert (code, second) == (0, 0), told + told_second
    assert nodes.fingerprint == alone


def test_one_machine_that_is_asked_to_stop_ends_with_75(nodes: Nodes) -> None:
    """Ray's start replaces what SIGTERM does; without care the command would end with 15."""
    words = [sys.executable, "-m", "launch", "shard", str(nodes.file)]
    environment = {**os.environ, "HOME": str(nodes.home)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    nodes.running.append(process)
    nodes.until_parts()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=ENDS_S)
    assert process.returncode == 75
    assert "stopped by SIGTERM" in told
