"""How rendering in several processes ends: asked to, killed, and when one of its processes is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.errors import WorkerError
from data_pipeline.synthetic import in_processes

RENDER = """
import sys
from tests.data_pipeline.test_render_ends import slow
from data_pipeline.synthetic import in_processes
if __name__ == "__main__":
    in_processes(slow, (sys.argv[1],), 4000, 2, None)
"""


def slow(folder: str, indices: range) -> int:
    """Says which process works, and takes its time."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(0.05)
    return len(indices)


def killed(folder: str, indices: range) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers_of(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


@pytest.fixture
def rendering(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that renders with two workers, both at it."""
    script, folder = tmp_path / "script.py", tmp_path / "at"
    folder.mkdir()
    script.write_text(RENDER)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, script, folder],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        start_new_session=True,  # as a terminal has it: Ctrl-C goes to all of a group
    )
    while len(workers_of(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    for pid in (process.pid, *workers_of(folder)):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def wait_until_gone(pids: list[int]) -> list[int]:
    """Those that are still there after a while."""
    for _ in range(200):
        if not any(map(is_alive, pids)):
            return []
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems have no parent's death signal"
)
def test_workers_end_with_the_process_that_asked(rendering: subprocess.Popen[bytes], tmp_path: Path) -> None:
    rendering.kill()
    rendering.wait(30)
    assert wait_until_gone(workers_of(tmp_path / "at")) == []


@pytest.mark.slow
def test_ctrl_c_ends_it_before_all_is_rendered_and_no_worker_speaks_of_it(
    rendering: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.killpg(rendering.pid, signal.SIGINT)
    said = rendering.communicate(timeout=30)[1].decode()
    assert said.count("Traceback") == 1, "that of the process itself, which a command does not show"
    assert wait_until_gone(workers_of(tmp_path / "at")) == []


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(WorkerError, match=r"0 of 8 are done .* the same command goes on"):
        in_processes(killed, (".",), 8, 2, None)
