"""Where a node's Ray is reached, and what is refused before one is started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch import ray_start
from launch.ray_start import LONGEST_SOCKET, check_free, own_address, ray_folder


def resolved(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name stands for these addresses."""
    rows = [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, 0)) for a in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_meant_where_it_is_said(host: str) -> None:
    assert own_address(host) in ("127.0.0.1", "::1")


def test_a_name_that_is_loopback_here_alone_means_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's /etc/hosts has a line `127.0.1.1 NAME`, which the other machines do not have."""
    resolved(monkeypatch, "127.0.1.1")
    monkeypatch.setattr(ray_start, "address_on_network", lambda host: f"network of {host}")
    assert own_address("node7") == "network of node7"


def test_an_address_that_others_reach_comes_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, "127.0.1.1", "10.1.2.3")
    monkeypatch.setattr(ray_start, "_is_ours", lambda address: address == "10.1.2.3")
    assert own_address("node7") == "10.1.2.3"


def test_the_first_node_is_not_started_at_anothers_address() -> None:
    with pytest.raises(UsageError, match=r"203\.0\.113\.7 is 203\.0\.113\.7, which is no address of this"):
        own_address("203.0.113.7")


def test_a_host_that_nobody_knows_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"there is no host no-such-host\.invalid"):
        own_address("no-such-host.invalid")


def test_a_port_in_use_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be had.*give another"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


def test_rays_folder_is_short_enough_for_its_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sites set TMPDIR to long paths; a socket's name ends after 107 characters."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with ray_folder() as folder:
        name = f"{folder}/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
        assert len(name) <= LONGEST_SOCKET
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1)])
def test_cores_are_those_that_a_container_may_use(
    quota: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(Path, "read_text", lambda *_: quota)
    assert ray_start.cores_here() == cores


STOPPED = """
import sys, time
from launch.processes import stops_at_once
with stops_at_once(says=True):
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_job_that_is_asked_to_stop_ends_as_one_that_goes_on(number: signal.Signals) -> None:
    """Slurm requeues what ends with 75; Python's own end by SIGTERM would be a failure."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75
    assert told == f"stopped by {number.name}; nothing half-written counts, the same command goes on\n"


TOKEN = """
from launch import ray_start
from data_pipeline.errors import UsageError
ray_start.TOKEN_S = 0.0
try:
    ray_start.use_token(is_first=False)
except UsageError as error:
    print(error)
ray_start.use_token(is_first=True)
ray_start.use_token(is_first=False)
"""


def test_the_first_node_makes_a_token_that_others_cannot_read(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.defpath}
    ended = subprocess.run(
        [sys.executable, "-c", TOKEN], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("this node has no token of the Ray that the first node started")
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    assert token.read_text().strip() not in ended.stdout + ended.stderr
