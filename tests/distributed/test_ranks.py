"""Two and three real ranks over gloo: equal curves, resumes at other worlds, killed ranks, stops."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.errors import EXIT_LOST_PEER, EXIT_PREEMPTED
from launch.config import dump_config
from launch.train import run_train
from pretrain.checkpoint import newest_whole
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_metrics
from pretrain.weights.run import run_weights
from tests.distributed.rank_jobs import BATCH
from tests.pretrain.cached_shards import until
from tests.pretrain.test_order import whole_epoch
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
ZERO_1 = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}


def curve(run: Path) -> list[tuple[int, float, str]]:
    return [(line["step"], line["loss"], line["batch_digest"]) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps over two ranks without a stop; read only."""
    out = tmp_path_factory.mktemp("two")
    return run_train(two_rank_config(small_dataset, out), nproc=2, quiet=True).run


def two_rank_config(small_dataset: Path, out: Path) -> RunConfig:
    train = {**BATCH, "steps": 8, "checkpoint_every": 2, "keep_checkpoints": 10}
    return tiny_config(small_dataset, out, train=train, strategy=ZERO_1, data={"workers": 1})


def digests(run: Path) -> list[str]:
    return [digest for _, _, digest in curve(run)]


def digests_by_definition(dataset: Path, config: RunConfig) -> list[str]:
    """What each step's digest is, from the indexes of the shards and the definitions of order and digest."""
    indexes = sorted((dataset / "shards").glob("train-*.index.parquet"))
    keys = [list(dict.fromkeys(pq.read_table(path)["key"].to_pylist())) for path in indexes]
    every, sizes = [key for shard in keys for key in shard], [len(shard) for shard in keys]
    order = [n for epoch in range(9) for n in whole_epoch(0, epoch, sizes, config.data.shuffle_window)]
    found, batch = [], config.train.global_batch
    for first in range(0, config.train.steps * batch, batch):
        names = [f"{position} {every[order[position]]}" for position in range(first, first + batch)]
        parts = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        total = sum(int.from_bytes(part, "little") for part in parts)
        found.append(f"{total % (1 << 64):016x}")
    return found


def cut_back(run: Path, out: Path, step: int) -> None:
    """A copy of a run as if it had ended after `step`."""
    shutil.copytree(run, out / run.name)
    (out / run.name / "result.json").unlink()
    for folder in (out / run.name / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def test_each_step_takes_the_samples_that_the_definition_names(whole_run: Path, small_dataset: Path) -> None:
    config = two_rank_config(small_dataset, Path("runs"))
    assert digests(whole_run) == digests_by_definition(small_dataset, config)
    assert len(set(digests(whole_run))) == 8


def test_two_ranks_resume_bit_for_bit(whole_run: Path, small_dataset: Path, tmp_path: Path) -> None:
    cut_back(whole_run, tmp_path, 4)
    run = run_train(two_rank_config(small_dataset, tmp_path), nproc=2, quiet=True).run
    assert curve(run) == curve(whole_run)


@pytest.mark.parametrize(
    ("num_ranks", "micro_batch", "strategy"),
    [
        (3, 2, ZERO_1),
        pytest.param(3, 4, ZERO_1, marks=pytest.mark.slow),
        pytest.param(1, 3, ZERO_1, marks=pytest.mark.slow),
        (1, 12, {"kind": "single"}),
    ],
)
def test_a_checkpoint_of_two_ranks_goes_on_with_others(
    whole_run: Path,
    small_dataset: Path,
    tmp_path: Path,
    num_ranks: int,
    micro_batch: int,
    strategy: dict[str, object],
) -> None:
    cut_back(whole_run, tmp_path, 4)
    train = {**BATCH, "steps": 8, "micro_batch": micro_batch}
    config = tiny_config(
        small_dataset, tmp_path, train=train, strategy=strategy, data={"workers": num_ranks % 2}
    )
    run = run_train(config, nproc=num_ranks, quiet=True).run
    assert digests(run) == digests_by_definition(small_dataset, config)
    losses = [[loss for _, loss, _ in curve(folder)] for folder in (run, whole_run)]
    assert losses[0] != losses[1], "they were computed anew, of other micro-batches"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if micro_batch == 2 else 2e-2)


# (ranks, ZeRO stage, clips a forward) of a run's legs, each from the checkpoint of the one before.
LEGS = {
    "stages": [(2, 2, 2), (2, 3, 3), (2, 1, 2)],
    "ranks, all in ZeRO-3": [(2, 3, 2), (1, 3, 4), (3, 3, 2), (2, 3, 2)],
    "ranks and stages": [(2, 3, 2), (1, 0, 12), (3, 2, 2), (2, 3, 6)],
}


@pytest.mark.parametrize(
    "name", ["stages", *(pytest.param(n, marks=pytest.mark.slow) for n in list(LEGS)[1:])]
)
def test_a_run_goes_on_over_other_ranks_and_stages(
    whole_run: Path, small_dataset: Path, tmp_path: Path, name: str
) -> None:
    """The samples exactly; losses and both encoders as in a run that one process did not interrupt."""
    legs = LEGS[name]
    for number, (ranks, stage, micro_batch) in enumerate(legs, start=1):
        train = {**BATCH, "steps": 8 * number // len(legs), "micro_batch": micro_batch, "checkpoint_every": 8}
        config = tiny_config(small_dataset, tmp_path, train=train, strategy={**ZERO_1, "zero_stage": stage})
        run = run_train(config, nproc=ranks, quiet=True).run
    assert digests(run) == digests(whole_run)
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (run, whole_run)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    for of in ("target", "context"):
        pair = [run_weights(folder, of=of).part("encoder") for folder in (run, whole_run)]
        for key, tensor in pair[0].items():
            torch.testing.assert_close(tensor, pair[1][key], atol=2e-5, rtol=1e-4)


def start(config: RunConfig) -> subprocess.Popen[str]:
    """`foreframe train` over two ranks as a user starts it."""
    path = Path(config.out) / "given.yaml"
    path.write_text(dump_config(config))
    code = "from launch.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", str(path), "--nproc", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "latest").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Pids of the started ranks: children that run launch.train."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if b"launch.train" in words and parent == process.pid:
                found.append(int(entry.name))
    return found


def everything_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    launcher = psutil.Process(process.pid)
    return [launcher, *launcher.children(recursive=True)]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def semaphores_of(job: list[psutil.Process]) -> list[Path]:
    """Files of shared memory, not yet removed, that these processes have in use."""
    found: set[Path] = set()
    for each in job:
        try:
            lines = Path(f"/proc/{each.pid}/maps").read_text().splitlines()
        except OSError:
            continue
        names = [line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line]
        found |= {Path(name) for name in names if not name.endswith("(deleted)")}
    return sorted(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks through /proc")
def test_a_killed_rank_is_told_in_a_sentence_and_the_run_goes_on(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    config = two_rank_config(small_dataset, tmp_path)
    process = start(config)
    wait_for_checkpoint(tmp_path / "tiny", process)
    job = everything_of(process)
    assert len(job) >= 5, "the launcher, two ranks and their loader workers"
    used = semaphores_of(job)
    assert used, "of the loaders' queues"
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_LOST_PEER, printed
    assert "killed by SIGKILL" in printed
    assert "goes on from step-" in printed
    assert "Traceback" not in printed and "leaked" not in printed, printed
    psutil.wait_procs(job, timeout=60)
    assert [each for each in job if is_alive(each)] == []
    assert [name for name in used if name.exists()] == []
    assert_goes_on(config, whole_run)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks through /proc")
def test_a_job_killed_as_a_whole_goes_on_with_the_same_command(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """As by a loss of power: launcher, ranks, loader workers and all."""
    config = two_rank_config(small_dataset, tmp_path)
    process = start(config)
    wait_for_checkpoint(tmp_path / "tiny", process)
    job = everything_of(process)
    left = semaphores_of(job)
    for each in job:
        each.kill()
    printed = process.communicate(timeout=60)[0]
    for name in left:  # nobody was left to do it
        name.unlink(missing_ok=True)
    assert "Traceback" not in printed, printed
    assert not (tmp_path / "tiny" / "result.json").exists()
    assert_goes_on(config, whole_run)


def assert_goes_on(config: RunConfig, whole_run: Path) -> None:
    """The same command: to the end, in silence, and with the steps of the run that was not stopped."""
    process = start(config)
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 0, printed
    assert "resumed from" in printed
    assert "Traceback" not in printed and "leaked" not in printed, printed
    assert curve(Path(config.out) / "tiny") == curve(whole_run)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ranks die with their launcher on Linux only"
)
def test_ranks_do_not_outlive_a_killed_launcher(small_dataset: Path, tmp_path: Path) -> None:
    process = start(two_rank_config(small_dataset, tmp_path))
    wait_for_checkpoint(tmp_path / "tiny", process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=60)  # the ranks' and their workers' ends of the pipe are closed, too
    until(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in ranks))  # init has buried them


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopping_the_command_saves_at_an_agreed_step(
    whole_run: Path, small_dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As Ctrl-C and a scheduler do it; loader workers get the signal too and must not die of it."""
    config = two_rank_config(small_dataset, tmp_path)
    process = start(config)
    wait_for_checkpoint(tmp_path / "tiny", process)
    process.send_signal(number)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_PREEMPTED, printed
    assert "saved at step" in printed
    assert "Traceback" not in printed
    _, manifest, passed = newest_whole(tmp_path / "tiny")
    assert not passed
    assert manifest["progress"]["step"] < 8
    run_train(config, nproc=2, quiet=True)
    assert curve(tmp_path / "tiny") == curve(whole_run)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks through /proc")
def test_a_signal_saves_at_an_agreed_step(whole_run: Path, small_dataset: Path, tmp_path: Path) -> None:
    config = two_rank_config(small_dataset, tmp_path)
    process = start(config)
    wait_for_checkpoint(tmp_path / "tiny", process)
    os.kill(ranks_of(process)[0], signal.SIGUSR1)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_PREEMPTED, printed
    assert "saved at step" in printed
    _, manifest, passed = newest_whole(tmp_path / "tiny")
    assert not passed
    assert manifest["progress"]["step"] < 8
    run_train(config, nproc=2, quiet=True)
    assert curve(tmp_path / "tiny") == curve(whole_run)
