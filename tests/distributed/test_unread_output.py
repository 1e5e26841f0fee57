"""A reader of the output that has ended, a terminal that was closed: the run goes on in silence."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.errors import EXIT_PREEMPTED
from launch.attempts import read_attempts
from launch.config import dump_config
from pretrain.checkpoint import newest_whole
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="terminals as Linux has them"),
]
ROOT = Path(__file__).parents[2]
TWO = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
SINGLE = {"kind": "single"}
COMMANDS = {
    "two ranks": (TWO, "train", "--nproc", "2"),
    "single": (SINGLE, "train"),
    "supervise": (SINGLE, "supervise", "--backoff-s", "0.1"),
}
ENDLESS = 100_000


def start(
    dataset: Path, out: Path, command: str, steps: int = ENDLESS, **given: Any
) -> subprocess.Popen[bytes]:
    strategy, *words = COMMANDS[command]
    assert isinstance(strategy, dict)
    train = {"steps": steps, "checkpoint_every": ENDLESS}
    path = out / "given.yaml"
    config = tiny_config(dataset, out, train=train, strategy=strategy, data={"workers": 1})
    path.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-m", "launch", str(words[0]), str(path), *map(str, words[1:])], cwd=ROOT, **given
    )


def start_unread(dataset: Path, out: Path, command: str) -> subprocess.Popen[bytes]:
    """As `foreframe train | tee log` whose tee has ended: every write is refused."""
    read, write = os.pipe()
    process = start(dataset, out, command, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    return process


def start_on_terminal(
    dataset: Path, out: Path, command: str, steps: int = ENDLESS, *, has_nohup: bool = False
) -> tuple[subprocess.Popen[bytes], int]:
    """With a terminal of its own, whose other end is returned; close it, and the terminal is gone."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.login_tty(slave)
        if has_nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(dataset, out, command, steps, preexec_fn=take_terminal)
    os.close(slave)
    os.set_blocking(master, False)
    return process, master


def last_step(out: Path) -> int:
    lines = read_metrics(out / "tiny")
    return lines[-1]["step"] if lines else 0


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool], terminal: int | None = None) -> None:
    deadline = time.monotonic() + 150
    while not until():
        if terminal is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(terminal, 1 << 16)  # a full one would hold the display up
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_saved_where_it_stopped(process: subprocess.Popen[bytes], out: Path) -> None:
    assert process.wait(timeout=150) == EXIT_PREEMPTED
    _, manifest, passed = newest_whole(out / "tiny")
    assert not passed
    assert manifest["progress"]["step"] == last_step(out) > 0


@pytest.mark.parametrize("command", ["two ranks", "single"])
def test_ctrl_c_saves_when_the_reader_of_a_pipe_has_gone(
    small_dataset: Path, tmp_path: Path, command: str
) -> None:
    process = start_unread(small_dataset, tmp_path, command)
    try:
        wait(process, lambda: last_step(tmp_path) >= 4)
        process.send_signal(signal.SIGINT)
        assert_saved_where_it_stopped(process, tmp_path)
    finally:
        process.kill()


def test_a_supervisor_whose_reader_has_gone_starts_the_run_again(small_dataset: Path, tmp_path: Path) -> None:
    process = start_unread(small_dataset, tmp_path, "supervise")
    try:
        wait(process, lambda: last_step(tmp_path) >= 4)
        (command,) = (
            each for each in psutil.Process(process.pid).children() if each.cmdline()[3:4] == ["train"]
        )
        command.kill()
        wait(process, lambda: len(read_attempts(tmp_path / "tiny")) == 1)
        (tmp_path / "tiny" / "metrics.jsonl").unlink()
        wait(process, lambda: last_step(tmp_path) >= 4)
        process.send_signal(signal.SIGINT)
        assert_saved_where_it_stopped(process, tmp_path)
        assert [each.kind for each in read_attempts(tmp_path / "tiny")] == ["killed", "PreemptedError"]
    finally:
        process.kill()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_closed_terminal_saves_and_ends_with_its_own_code(
    small_dataset: Path, tmp_path: Path, command: str
) -> None:
    process, terminal = start_on_terminal(small_dataset, tmp_path, command)
    try:
        wait(process, lambda: last_step(tmp_path) >= 4, terminal)
        os.close(terminal)
        assert_saved_where_it_stopped(process, tmp_path)
    finally:
        process.kill()


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_is_no_stop(small_dataset: Path, tmp_path: Path) -> None:
    process, terminal = start_on_terminal(small_dataset, tmp_path, "single", 60, has_nohup=True)
    try:
        wait(process, lambda: last_step(tmp_path) >= 1, terminal)
        os.close(terminal)
        assert process.wait(timeout=150) == 0
        assert last_step(tmp_path) == 60
    finally:
        process.kill()
