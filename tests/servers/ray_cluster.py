"""A Ray cluster of two raylets on this machine, with the job server that `ray[default]` brings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.servers.process import READY_WITHIN_S, die_with_parent

SERVER_NEEDS = ("aiohttp_cors", "grpc", "opencensus", "prometheus_client")  # as ray.dashboard.optional_deps


def need_job_server() -> None:
    """Skip the test, with the reason, where Ray cannot serve jobs."""
    missing = [name for name in SERVER_NEEDS if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs Ray's job server: pip install 'ray[default]' ({', '.join(missing)} not there)")


@dataclass
class TwoRaylets:
    """address: of the job server. home: of the cluster and who talks to it, with a token of its own."""

    address: str
    home: Path
    raylets: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "RAY_AUTH_MODE": "token", "TERM": "dumb"}

    def lose(self, number: int) -> None:
        """SIGKILL to everything of one node, as a loss of its power would end it."""
        process = self.raylets[number]
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def two_raylets(home: Path, cpus: int = 2) -> Iterator[TwoRaylets]:
    need_job_server()
    gcs, jobs = _free_port(), _free_port()
    cluster = TwoRaylets(f"http://127.0.0.1:{jobs}", home)
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("0123456789abcdef" * 4)  # of this test's cluster alone
    first = ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={jobs}"]
    try:
        for number, words in enumerate((first, [f"--address=127.0.0.1:{gcs}"])):
            _start(cluster, number, [*words, f"--num-cpus={cpus}"])
            if not number:
                _wait_for(cluster)
        yield cluster
    finally:
        for number in range(len(cluster.raylets)):
            if cluster.raylets[number].poll() is None:
                cluster.lose(number)
            cluster.raylets[number].wait()
            shutil.rmtree(_folder(number), ignore_errors=True)


def _folder(number: int) -> Path:
    """Short, as names of sockets below it have 107 characters at most."""
    return Path("/tmp") / f"ffray-{os.getpid()}-{number}"


def _start(cluster: TwoRaylets, number: int, words: list[str]) -> None:
    options = ["--block", "--disable-usage-stats", f"--temp-dir={_folder(number)}", "--min-worker-port=0"]
    options += ["--max-worker-port=0", f"--ray-client-server-port={_free_port()}"]
    with (cluster.home / f"ray-{number}.log").open("wb") as log:
        cluster.raylets.append(
            subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *options],
                env=cluster.environment,
                cwd=cluster.home,  # nothing of foreframe's tree lies there: its code has to come with the job
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        )


def _wait_for(cluster: TwoRaylets) -> None:
    deadline_s = time.monotonic() + 2 * READY_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(cluster.address, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it asks for its token: it is there
        except OSError:
            log = (cluster.home / "ray-0.log").read_text()
            is_late = time.monotonic() > deadline_s
            assert cluster.raylets[0].poll() is None and not is_late, f"Ray did not start:\n{log[-3000:]}"
            time.sleep(0.2)
