"""A node's process: it outlives who started it, leaves its end behind, and is never mistaken for another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch.submit import node_process
from launch.submit.node_process import (
    NodeProcess,
    NodeState,
    ask,
    call_off,
    end,
    exit_code,
    is_alive,
    log_file,
    pid_file,
    read_node,
    read_nodes,
    start,
    state,
    wait,
)

ROOT = Path(__file__).parents[2]
SOON_S = 60.0


def until_ended(logs: Path, node: int = 0) -> int:
    deadline_s = time.monotonic() + SOON_S
    while (code := exit_code(logs, node)) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return code


def test_it_outlives_its_starter_and_leaves_its_log_and_exit_code(tmp_path: Path) -> None:
    """As over ssh: the starter is a process that ends, and with it all that it holds open."""
    call = [sys.executable, "-m", "launch.submit.node_process", "start", str(tmp_path), "3", "the-host"]
    job = ["/bin/sh", "-c", 'echo "$NAME"; read line < "$0"; exit 7', str(tmp_path / "pipe")]
    os.mkfifo(tmp_path / "pipe")
    done = subprocess.run(
        [*call, *job],
        cwd=ROOT,
        env={**os.environ, "NAME": "it's"},
        capture_output=True,
        text=True,
        timeout=SOON_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"is_alive": true, "exit_code": null}\n'
    process = read_node(tmp_path, 3)
    assert process is not None and process.host == "the-host" and is_alive(process)
    assert os.getsid(process.pid) == process.pid
    assert read_nodes(tmp_path) == {3: process}
    (tmp_path / "pipe").write_text("\n")
    assert until_ended(tmp_path, 3) == 7
    assert state(tmp_path, 3) == NodeState(False, 7)
    assert log_file(tmp_path, 3).read_text() == "it's\n"


def test_it_is_asked_by_a_signal_that_it_may_heed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"trap 'echo saved; exit 75' TERM; touch {started}; while :; do sleep 0.05; done"
    start(tmp_path, 0, ["/bin/sh", "-c", script], "here")
    while not started.exists():
        time.sleep(0.02)
    assert ask(tmp_path, 0)
    assert until_ended(tmp_path) == 75
    assert log_file(tmp_path, 0).read_text() == "saved\n"
    assert not ask(tmp_path, 0) and not end(tmp_path, 0)


def test_an_end_takes_with_it_what_heeds_nothing_and_has_left_the_session(tmp_path: Path) -> None:
    deaf = "import os, signal, sys, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    child = f"{deaf}os.setsid()\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    parent = f"{deaf}import subprocess\nsubprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])\n"
    told = tmp_path / "child"
    process = start(tmp_path, 0, [sys.executable, "-c", parent, str(told)], "here")
    while not told.exists() or not told.read_text():
        time.sleep(0.02)
    child_pid = int(told.read_text())
    assert end(tmp_path, 0, grace_s=0.2)
    assert not is_alive(process)
    assert until_ended(tmp_path) == 128 + signal.SIGKILL
    assert not Path(f"/proc/{child_pid}").exists()


def test_a_number_that_another_process_has_now_is_not_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        began = node_process.start_time_of(other.pid)
        assert began is not None
        pid_file(tmp_path, 0).write_text(f"here {other.pid} {began - 1}\n")
        assert state(tmp_path, 0) == NodeState(False, None)
        assert not ask(tmp_path, 0) and not end(tmp_path, 0)
        assert other.poll() is None
        assert is_alive(NodeProcess("here", other.pid, began))
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("text", ["", "here 12", "here x 3", "a b c d"])
def test_a_file_that_says_nothing_is_no_process(tmp_path: Path, text: str) -> None:
    pid_file(tmp_path, 0).write_text(text)
    assert read_node(tmp_path, 0) is None and read_nodes(tmp_path) == {}


def test_what_was_called_off_does_not_start(tmp_path: Path) -> None:
    call_off(tmp_path)
    with pytest.raises(UsageError, match="was called off"):
        start(tmp_path, 0, ["true"], "here")
    assert not pid_file(tmp_path, 0).exists()


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"could not be started: see .*node-0\.log"):
        start(tmp_path, 0, [str(tmp_path / "nothing")], "here")


@pytest.mark.parametrize(("needs_all", "failed"), [(True, 1), (False, 0)])
def test_when_a_node_that_it_needs_has_failed_it_is_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_all: bool, failed: int
) -> None:
    monkeypatch.setattr(node_process, "LEFT_ALONE_S", 0.1)
    monkeypatch.setattr(node_process, "LOOK_S", 0.1)
    (tmp_path / "node-3.exit").write_text("0\n" if needs_all else "2\n")  # these are no reason
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)

    def wait_for() -> None:
        node_process._wait_for(child, tmp_path, 2, needs_all=needs_all)

    waiting = threading.Thread(target=wait_for)
    waiting.start()
    time.sleep(0.6)
    assert child.poll() is None
    (tmp_path / f"node-{failed}.exit").write_text("5\n")
    waiting.join(SOON_S)
    assert child.returncode == -signal.SIGTERM


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    began = node_process.start_time_of(os.getpid())
    assert began is not None
    assert not wait(NodeProcess("here", os.getpid(), began), 0.1)
