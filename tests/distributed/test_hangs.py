"""Ranks that hang: two real ones over gloo, ended with 6 within their limits, the stacks written down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.errors import EXIT_LOST_PEER
from launch.config import dump_config
from pretrain.checkpoint import verify
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.test_ranks import everything_of, is_alive, ranks_of, wait_for_checkpoint
from tests.small_dataset import tiny_config

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc"),
]
ROOT = Path(__file__).parents[2]
LIMIT_S = 150  # generous for hang_s or timeout_s of 8 s, and the start of two ranks on a loaded machine

# Laid over Python's start in every process of a job; what follows patches a function there.
PATCH = """
import os, sys
is_rank = "launch.train" in sys.orig_argv
is_worker = any("--multiprocessing-fork" in word for word in sys.orig_argv)
"""
LOOP_FOR_EVER = """
if is_rank and os.environ["RANK"] == "1":
    from pretrain.strategy.base import Engine
    loss = Engine.loss
    def never_returns():
        while True:
            pass
    def hang(self, batch, targets):
        return never_returns() if batch.step == 3 else loss(self, batch, targets)
    Engine.loss = hang
"""
SLOW_WORKER = """
if is_worker:
    import time
    from pretrain.data.load import Laps
    lap, clips = Laps.lap, []
    def slow(self, stage):
        if stage == "decode" and len(clips) < 4:  # of the first batch
            clips.append(time.sleep(4.0))
        lap(self, stage)
    Laps.lap = slow
"""
HANGING_WORKER = """
if is_worker:
    import time
    from pretrain.data.load import Loader
    Loader._load = lambda self, request: time.sleep(3600)
"""

# Bytes trickle to this rank's disk for half a minute before its file is written.
SLOW_DISK = """
if is_rank and os.environ["RANK"] == "1":
    import time
    from pretrain.checkpoint.write import HostCopy
    write = HostCopy.write
    def slow(self, path, moved):
        for _ in range(60):
            time.sleep(0.5)
            moved(8192)
        return write(self, path, moved)
    HostCopy.write = slow
"""
SLOW_FLUSH = """
if is_rank and os.environ["RANK"] == "0":
    import time
    from pretrain.tracking.jsonl import JsonlTracker
    JsonlTracker.flush = lambda self: time.sleep(14)
"""
FULL_DISK_OF_ONE_RANK = """
if is_rank and os.environ["RANK"] == "1":
    import errno
    from pretrain.checkpoint.write import HostCopy
    write = HostCopy.write
    def fill(self, path, moved):
        if path.parent.name.startswith("step-00000004"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(self, path, moved)
    HostCopy.write = fill
"""


def config_of(dataset: Path, out: Path, **limits: Any) -> RunConfig:
    train = {"global_batch": 8, "micro_batch": 4, "steps": 400, "checkpoint_every": 2, "precision": "fp32"}
    return tiny_config(
        dataset,
        out,
        train={**train, **limits.get("train", {})},
        strategy={"kind": "deepspeed", "zero_stage": 1, "timeout_s": 120, **limits.get("strategy", {})},
        data={"workers": 1, **limits.get("data", {})},
    )


def start(config: RunConfig, patch: str = "") -> subprocess.Popen[str]:
    out = Path(config.out)
    (out / "given.yaml").write_text(dump_config(config))
    (out / "sitecustomize.py").write_text(PATCH + patch)
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "train", str(out / "given.yaml"), "--nproc", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{out}:{ROOT}"},
    )


def stacks(run: Path) -> dict[str, str]:
    """What was written down, by the end of the file's name."""
    return {path.name.partition("-")[2]: path.read_text() for path in (run / "hangs").iterdir()}


@pytest.mark.parametrize(
    ("hang_s", "timeout_s", "setting"),
    [
        (25.0, 120.0, "train.hang_s"),  # a start, too, has that long: 8 s were once too few on a busy machine
        pytest.param(120.0, 8.0, "strategy.timeout_s", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_rank_ends_the_run_with_the_stacks_of_the_other(
    small_dataset: Path, tmp_path: Path, hang_s: float, timeout_s: float, setting: str
) -> None:
    limits = {
        "train": {"hang_s": hang_s},
        "strategy": {"timeout_s": timeout_s},
        "data": {"timeout_s": timeout_s - 1},
    }
    process = start(config_of(small_dataset, tmp_path, **limits))
    wait_for_checkpoint(tmp_path / "tiny", process)
    job = everything_of(process)
    stopped = ranks_of(process)[-1]
    os.kill(stopped, signal.SIGSTOP)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == EXIT_LOST_PEER, printed
    assert f"({setting})" in printed
    assert "rank 1 is stopped by a signal" in printed
    assert "goes on from step-" in printed
    found = stacks(tmp_path / "tiny")
    assert "pretrain/loop.py" in found["rank-00000.txt"]
    assert "stopped by a signal" in found["rank-00001.txt"]
    psutil.wait_procs(job, timeout=30)
    assert [each for each in job if is_alive(each)] == [], "the stopped one is gone, too"


@pytest.mark.slow
def test_a_loop_without_end_is_named_by_its_function(small_dataset: Path, tmp_path: Path) -> None:
    process = start(config_of(small_dataset, tmp_path, train={"hang_s": 8.0}), LOOP_FOR_EVER)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == EXIT_LOST_PEER, printed
    assert "rank 1 has not moved for" in printed
    assert "rank 1 is at step 4 (forward)" in printed
    found = stacks(tmp_path / "tiny")
    assert "in never_returns" in found["rank-00001.txt"]
    assert "in never_returns" not in found["rank-00000.txt"]
    assert "pretrain/loop.py" in found["rank-00000.txt"]


@pytest.mark.slow
def test_ranks_that_are_all_stopped_are_ended_by_their_starter(small_dataset: Path, tmp_path: Path) -> None:
    process = start(config_of(small_dataset, tmp_path, train={"hang_s": 8.0}))
    wait_for_checkpoint(tmp_path / "tiny", process)
    ranks = ranks_of(process)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == EXIT_LOST_PEER, printed
    assert "rank 0 and rank 1 have not moved" in printed
    assert not any(psutil.pid_exists(pid) for pid in ranks)


@pytest.mark.slow
def test_a_first_batch_that_is_slow_but_moves_is_no_hang(small_dataset: Path, tmp_path: Path) -> None:
    """Four clips of 4 s each: twice the 8 s, of which nothing may move, pass before the first batch."""
    limits = {"train": {"hang_s": 8.0, "steps": 2}, "data": {"timeout_s": 100.0}}
    process = start(config_of(small_dataset, tmp_path, **limits), SLOW_WORKER)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
    assert not (tmp_path / "tiny" / "hangs").exists()
    first = (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"step": 1' in first


@pytest.mark.slow
def test_a_loader_worker_that_hangs_is_named(small_dataset: Path, tmp_path: Path) -> None:
    process = start(config_of(small_dataset, tmp_path, data={"timeout_s": 6.0}), HANGING_WORKER)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 3, printed
    assert "no batch came for 6 s (data.timeout_s); awaited are the samples" in printed
    assert "Traceback" not in printed


def test_a_save_that_fails_on_one_rank_is_none_on_any_and_the_run_goes_on(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = config_of(small_dataset, tmp_path, train={"steps": 6, "keep_checkpoints": 9})
    process = start(config, FULL_DISK_OF_ONE_RANK)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
    assert "no checkpoint at step 4: " in printed and "No space left on device" in printed
    folder = tmp_path / "tiny" / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["latest", "step-00000002", "step-00000006"]
    for name in names[1:]:
        verify(folder / name)
    assert read_metrics(tmp_path / "tiny")[-1]["checkpoint/failed"] == 1


@pytest.mark.slow
def test_a_rank_that_waits_for_anothers_slow_disk_does_not_hang(small_dataset: Path, tmp_path: Path) -> None:
    process = start(config_of(small_dataset, tmp_path, train={"hang_s": 8.0, "steps": 2}), SLOW_DISK)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
    assert not (tmp_path / "tiny" / "hangs").exists()


@pytest.mark.slow
def test_metrics_that_are_slow_to_reach_the_disk_lose_no_peer(small_dataset: Path, tmp_path: Path) -> None:
    """Each flush takes longer than a collective may."""
    limits = {"train": {"steps": 2}, "strategy": {"timeout_s": 8.0}, "data": {"timeout_s": 7.0}}
    process = start(config_of(small_dataset, tmp_path, **limits), SLOW_FLUSH)
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
