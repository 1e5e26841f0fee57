"""Nodes of a sharding job before there is a Ray: what they refuse, wait for, and take for lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import LostPeerError, UsageError
from launch import ray_board, ray_nodes
from launch.meeting import Job
from launch.ray_board import Board
from launch.ray_nodes import _check, _drive, _gather, run_other, shard_on_node, versions
from launch.supervise import Stopped


def config_of(out: Path, **ray: object) -> DataConfig:
    return DataConfig.model_validate({"name": "t", "out": str(out), "sources": ["videos"], "ray": ray})


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that looks around quickly, asks nobody for a token, and leaves what pytest started alone: among
    it a Ray of other tests, whose end would end pytest too, without a word, a minute later.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray_nodes, "LOOK_S", 0.1)
    monkeypatch.setattr(ray_nodes, "adopt_orphans", lambda: None)
    monkeypatch.setattr(ray_nodes, "end_descendants", lambda _: 0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_cluster_of_ones_own_and_nodes_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ray\.address is auto: with --nnodes the first node starts"):
        shard_on_node(config_of(tmp_path, address="auto"), [], 2, 0, "127.0.0.1:29400")


@pytest.mark.parametrize(
    ("node", "at", "told"),
    [(2, "127.0.0.1:29400", "--node-rank is 2: need 0 to 1"), (0, None, "--nnodes needs --rendezvous")],
)
def test_nodes_are_numbered_and_told_where_to_meet(
    tmp_path: Path, node: int, at: str | None, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        shard_on_node(config_of(tmp_path), [], 2, node, at)


def test_a_port_in_use_ends_the_command_with_2_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("name: t\nout: out\nsources: [videos]\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["shard", "data.yaml", "--nnodes", "2", "--node-rank", "0", "--rendezvous", at]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
        ended = subprocess.run(
            [sys.executable, "-m", "launch", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 2
    assert "cannot be had on this machine" in ended.stderr.replace("\n", " ")
    assert {path.name for path in tmp_path.iterdir()} == {"data.yaml"}


def test_a_node_with_other_versions_or_started_otherwise_is_named() -> None:
    job = Job(1, 2, 1, "127.0.0.1:29400")
    _check(job, {"nnodes": 2, "versions": versions()})
    with pytest.raises(UsageError, match="--nnodes is 2: need 3, as on node 0"):
        _check(job, {"nnodes": 3, "versions": versions()})
    with pytest.raises(UsageError, match=rf"has other versions.* av {versions()['av']} \(9\.9 there\)"):
        _check(job, {"nnodes": 2, "versions": versions() | {"av": "9.9"}})


@pytest.mark.usefixtures("without_ray")
def test_a_first_node_that_never_comes_is_a_lost_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "MEETING_S", 1.0)
    at = f"127.0.0.1:{free_port()}"
    with pytest.raises(LostPeerError, match=f"did not come within 1 s.*--node-rank 0 there.*{at}"):
        run_other(Job(1, 2, 1, at), lambda _: None, lambda: False)


@pytest.mark.usefixtures("without_ray")
def test_a_node_that_comes_after_the_end_of_all_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "FINISHED_S", 0.1)
    said: list[str] = []
    at = f"127.0.0.1:{free_port()}"
    assert run_other(Job(1, 2, 1, at), said.append, lambda: True) == 0
    assert said == [f"no first node at {at}, and the data set is finished: nothing to do here"]


@pytest.mark.usefixtures("without_ray")
def test_a_node_that_joins_as_the_first_one_ends_is_lost_only_to_work_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = {"id": "0", "nnodes": 2, "versions": versions()}
    monkeypatch.setattr(Board, "read", lambda *_: note)  # and then nobody is at the door any more
    job, said = Job(1, 2, 1, f"127.0.0.1:{free_port()}"), list[str]()
    assert run_other(job, said.append, lambda: True) == 0
    assert said == ["the first node ended before this one had joined, and the data set is finished"]
    with pytest.raises(LostPeerError, match="the same command on all nodes goes on"):
        run_other(job, said.append, lambda: False)


THREE = Job(1, 3, 0, "127.0.0.1:29400")


class Roll(Board):
    """A board on which a node more appears at each look; silence where a name is empty."""

    def __init__(self, *names: str) -> None:
        self._names, self.looks = names, 0

    def nodes(self) -> set[str]:
        self.looks += 1
        if not all(self._names[self.looks - 1 : self.looks]):
            raise LostPeerError("the first node does not answer: timed out")
        return set(filter(None, self._names[: self.looks]))


@pytest.fixture
def ray() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for Ray's processes: it lives until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_first_node_waits_for_all_and_then_no_longer(ray: subprocess.Popen[bytes]) -> None:
    board, said = Roll("node-0", "node-2", "node-1"), []
    assert _gather(board, ray, THREE, said.append, Stopped()) == {"node-0", "node-1", "node-2"}
    assert board.looks == 3
    assert said == []


def test_a_ray_that_is_busy_while_nodes_join_ends_no_job(ray: subprocess.Popen[bytes]) -> None:
    assert len(_gather(Roll("", "node-0", "", "node-2", "node-1"), ray, THREE, print, Stopped())) == 3
    board = Roll("", "node-0")
    assert _drive([sys.executable, "-c", ""], ray, board, {"node-0"}, print, Stopped()) == 0
    ray.kill()
    ray.wait()
    with pytest.raises(LostPeerError, match="does not answer"):
        _gather(Roll("node-0", ""), ray, THREE, print, Stopped())


def test_a_note_is_left_as_soon_as_ray_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_board, "POLL_S", 0.01)
    tried: list[str] = []

    def busy(*_: Any) -> None:
        tried.append("")
        if len(tried) != 3:
            raise LostPeerError("the first node does not answer: timed out")

    board = Board("127.0.0.1", 9)
    monkeypatch.setattr(board, "_call", busy)
    board.write("end", {"exit_code": 0}, 60.0, lambda: False)
    assert len(tried) == 3
    for within_s, gives_up in ((60.0, True), (0.0, False)):
        with pytest.raises(LostPeerError):
            board.write("end", {"exit_code": 0}, within_s, lambda given=gives_up: given)


def test_the_first_node_begins_without_those_that_do_not_come(
    monkeypatch: pytest.MonkeyPatch, ray: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(ray_nodes, "GATHER_S", 0.3)
    monkeypatch.setattr(ray_nodes, "SAY_AFTER_S", 0.0)
    said: list[str] = []
    _gather(Roll("node-0", "node-2"), ray, Job(1, 4, 0, "127.0.0.1:29400"), said.append, Stopped())
    assert "waiting up to 0 s for" in said[0]
    assert said[-1] == (
        "2 of 4 nodes not there after 0 s (node-1, node-3): begun without; a node that comes later joins"
    )


def test_a_first_node_that_refuses_is_gone_at_once_and_a_silent_one_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        board = Board("127.0.0.1", server.getsockname()[1])
        assert all(board.is_there() for _ in range(5))
        assert board.knock() == "127.0.0.1"
    assert [board.is_there() for _ in range(3)] == [True, True, False]

    def silent(*_: Any, **__: Any) -> None:
        raise TimeoutError

    board = Board("127.0.0.1", 9)
    monkeypatch.setattr(socket, "create_connection", silent)
    assert all(board.is_there() for _ in range(5))
    monkeypatch.setattr(ray_board, "SILENT_S", 0.0)
    assert not board.is_there()
