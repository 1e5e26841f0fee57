"""Ranks that another launcher starts: what DeepSpeed's tells them, and a connection to it that is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import EXIT_PREEMPTED
from launch.config import dump_config, shipped_config
from launch.lock import lock_run
from launch.ranks import ranks_here
from pretrain.checkpoint import newest_whole
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("told", "here"), [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_SIZE": "8"}, 8)]
)
def test_ranks_share_a_machine_as_their_launcher_says(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], here: int
) -> None:
    """torchrun and our own starter say LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == here


def test_the_argument_that_deepspeeds_launcher_puts_first_is_taken() -> None:
    tiny = str(shipped_config("train/tiny-cpu.yaml"))
    ended = subprocess.run(
        [sys.executable, "-m", "launch", "--local_rank=1", "config", "diff", tiny, tiny],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("equal")


@pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT], ids=["stdout", "both"])
def test_output_that_nobody_reads_any_more_ends_a_launchers_rank_with_a_save(
    small_dataset: Path, tmp_path: Path, errors: int
) -> None:
    """As when the ssh is gone through which a launcher reads: a crash would lose the steps since a save.

    Without another launcher the run goes on: tests/distributed/test_unread_output.py.
    """
    config = tiny_config(small_dataset, tmp_path, train={"steps": 5000, "checkpoint_every": 5000})
    (tmp_path / "given.yaml").write_text(dump_config(config))
    often = "from launch import cli, train_display; train_display.LINE_EVERY_S = 0; cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", often, "train", str(tmp_path / "given.yaml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"},
    )
    assert process.stdout is not None
    assert "step 1/5000" in process.stdout.readline()
    process.stdout.close()
    printed = process.stderr.read() if process.stderr is not None else None
    assert process.wait(60) == EXIT_PREEMPTED, printed
    if printed is not None:
        assert "stopped: nobody reads what it prints any more: saved at step" in printed
        assert "Traceback" not in printed and "Exception" not in printed, printed
    _, manifest, _ = newest_whole(tmp_path / "tiny")
    assert 0 < manifest["progress"]["step"] < 5000


def test_another_launchers_ranks_keep_to_the_run_that_nobody_else_trains(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 2})
    (tmp_path / "given.yaml").write_text(dump_config(config))
    (tmp_path / "tiny").mkdir()
    command = [sys.executable, "-m", "launch", "train", str(tmp_path / "given.yaml")]
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}

    def train() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=100, check=False
        )

    with lock_run(tmp_path / "tiny"):
        refused = train()
        assert refused.returncode == 2, refused.stderr
        assert f"is being trained by process {os.getpid()}" in refused.stderr
        assert not (tmp_path / "tiny" / "config.yaml").exists()
    assert train().returncode == 0
