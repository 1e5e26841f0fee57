"""Jobs submitted over ssh from the first of two hosts, as a person there would type it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import DataConfig
from launch.config import dump_config
from launch.submit.node_process import read_nodes
from pretrain.config import RunConfig
from tests.servers.hosts import Host, Ssh

ROOT = Path(__file__).parents[2]
STARTED_WITHIN_S = 120.0


@dataclass(frozen=True)
class Typed:
    """A command at work on the first host. printed: the file of what it prints."""

    process: subprocess.Popen[bytes]
    printed: Path

    @property
    def text(self) -> str:
        return self.printed.read_text()

    def until(self, is_so: Callable[[], bool], seconds: float = STARTED_WITHIN_S) -> None:
        deadline_s = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline_s, self.text
            time.sleep(0.05)

    def end(self, seconds: float = STARTED_WITHIN_S) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done within {seconds} s:\n{self.text}") from None


def type_on(host: Host, words: Sequence[str], folder: Path) -> Typed:
    """`foreframe WORDS` in a folder, on a host."""
    printed = folder / f"printed-{time.monotonic_ns()}"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            host.command(sys.executable, "-m", "launch", *words),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return Typed(process, printed)


def submit(
    config: RunConfig | DataConfig,
    hosts: Sequence[Host],
    ssh: Ssh,
    *words: str,
    place: Sequence[str] = (),
    folder: Path | None = None,
) -> Typed:
    """Submit a job over all hosts. words: more of the command. place: more settings of the place. folder: in
    which it is typed; `out` when not given."""
    folder = folder or Path(config.out)
    given = folder / "given.yaml"
    given.write_text(dump_config(config))
    names = ",".join(host.address for host in hosts)
    settings = [f"hosts=[{names}]", f"ssh_config={ssh.config}", *place]
    told = [part for setting in settings for part in ("--with", setting)]
    return type_on(hosts[0], ["submit", str(given), "--on", "ssh", *told, *words], folder)


def submission(config: RunConfig, number: int = 1) -> Path:
    return Path(config.out) / config.name / "submissions" / f"{number:03d}"


def hosts_started(folder: Path) -> list[str]:
    return [process.host for process in read_nodes(folder / "logs").values()]


def commands_on(host: Host) -> dict[int, list[str]]:
    """The words of every command that runs there, by process id."""
    found = {}
    for pid in host.pids():
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
    return found


def left_on(host: Host) -> list[str]:
    """Commands of foreframe, and of scripts of its nodes, that run there."""
    return [
        " ".join(words)
        for words in commands_on(host).values()
        if any(word == "launch" or word.startswith("launch.") or word.endswith("/node.sh") for word in words)
    ]


def nothing_is_left(hosts: Sequence[Host], within_s: float = 10.0) -> bool:
    """A keeper has written the exit code a moment before it ends."""
    deadline_s = time.monotonic() + within_s
    while left := [left_on(host) for host in hosts if left_on(host)]:
        if time.monotonic() > deadline_s:
            print(left)
            return False
        time.sleep(0.05)
    return True
