"""`foreframe supervise` over two real ranks: killed at any moment, it has the steps of a run that was not."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.attempts import read_attempts
from launch.config import dump_config
from launch.train import run_train
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.test_ranks import curve
from tests.small_dataset import tiny_config

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ends orphans on Linux only"),
]
ROOT = Path(__file__).parents[2]
STEPS = 60


def config_of(dataset: Path, out: Path, steps: int = STEPS) -> RunConfig:
    train = {"global_batch": 12, "micro_batch": 2, "steps": steps, "checkpoint_every": 3, "precision": "fp32"}
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    return tiny_config(dataset, out, train=train, strategy=strategy, data={"workers": 1})


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps without a stop; read only."""
    return run_train(config_of(small_dataset, tmp_path_factory.mktemp("two")), nproc=2, quiet=True).run


def start(config: RunConfig, *options: str) -> subprocess.Popen[str]:
    path = Path(config.out) / "given.yaml"
    path.write_text(dump_config(config))
    given = [str(path), "--nproc", "2", "--backoff-s", "0.1", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "supervise", *given],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def with_words(process: subprocess.Popen[str], *words: str) -> list[psutil.Process]:
    """Descendants of a supervisor with all of these words in their command."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            command = each.cmdline()
        except psutil.Error:
            continue
        if all(word in command for word in words):
            found.append(each)
    return found


def victims(process: subprocess.Popen[str], who: str) -> list[psutil.Process]:
    ranks = with_words(process, "-m", "launch.train")
    return {"one rank": ranks[-1:], "all ranks": ranks, "the command": with_words(process, "-m", "launch")}[
        who
    ]


def last_step(run: Path) -> int:
    lines = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    return lines[-1]["step"] if lines else 0


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def every_line(run: Path, seen: dict[int, set[tuple[float, str]]]) -> None:
    """Note what each logged step says now: a step that is taken again must say the same."""
    for step, loss, digest in curve(run):
        seen.setdefault(step, set()).add((loss, digest))


def kill_in_turn(
    config: RunConfig, whole_run: Path, kills: list[tuple[int, float, str]], *options: str
) -> list[str]:
    """Supervise; each kill is (after step, seconds later, who). Returns the kinds of all ends."""
    run = Path(config.out) / "tiny"
    seen: dict[int, set[tuple[float, str]]] = {}
    process = start(config, *options)
    try:
        for step, later_s, who in kills:
            wait_for_step(run, step, process)
            time.sleep(later_s)
            if step:
                every_line(run, seen)
            before = len(read_attempts(run)) if run.is_dir() else 0
            while not (found := victims(process, who)):  # still starting
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            for each in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            deadline = time.monotonic() + 90
            while len(read_attempts(run)) == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        printed = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert "Traceback" not in printed, printed
    every_line(run, seen)
    assert curve(run) == curve(whole_run)
    assert seen == {step: {(loss, digest)} for step, loss, digest in curve(whole_run)}
    return [attempt.kind for attempt in read_attempts(run)]


def test_killed_ranks_and_commands_are_started_again_to_the_same_curve(
    whole_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    kills = [(5, 0.0, "one rank"), (15, 0.1, "the command"), (25, 0.0, "all ranks")]
    kinds = kill_in_turn(config_of(small_dataset, tmp_path), whole_run, kills)
    assert kinds == ["LostPeerError", "killed", "LostPeerError", "done"]
    attempts = read_attempts(tmp_path / "tiny")
    assert all(later.from_step >= each.to_step for each, later in itertools.pairwise(attempts))
    assert attempts[-1].to_step == STEPS


LONG = 300


@pytest.fixture(scope="module")
def long_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More steps without a stop; read only."""
    return run_train(config_of(small_dataset, tmp_path_factory.mktemp("two"), LONG), nproc=2, quiet=True).run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(3))
def test_killed_thirty_times_at_random_moments(
    long_run: Path, small_dataset: Path, tmp_path: Path, seed: int
) -> None:
    """Ten times a seed: somebody is killed shortly after a random step, or at any moment while starting."""
    draw = random.Random(seed)
    who = ["one rank", "all ranks", "the command"]
    at_step = [(step, draw.uniform(0.0, 0.3), draw.choice(who)) for step in range(20, 230, 30)]
    starting = [(0, draw.uniform(0.5, 12.0), draw.choice(who)) for _ in range(3)]
    kills = [*starting[:1], *at_step[:3], *starting[1:2], *at_step[3:5], *starting[2:], *at_step[5:]]
    kinds = kill_in_turn(config_of(small_dataset, tmp_path, LONG), long_run, kills, "--max-failures", "5")
    assert kinds[-1] == "done"
    assert len(kinds) == 11, "each kill ended an attempt"


def test_a_stop_saves_a_second_supervisor_is_refused_and_a_setting_is_not_tried_again(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = config_of(small_dataset, tmp_path)
    process = start(config)
    wait_for_step(tmp_path / "tiny", 4, process)
    second = start(config)
    printed = second.communicate(timeout=60)[0]
    assert second.returncode == 2, printed
    assert f"is being supervised by process {process.pid}" in printed
    process.terminate()
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 75, printed
    assert "saved at step" in printed
    (only,) = read_attempts(tmp_path / "tiny")
    assert (only.kind, only.exit_code, only.next) == ("PreemptedError", 75, "stopped by SIGTERM")
    changed = config.model_copy(update={"seed": 1})
    third = start(changed)
    printed = third.communicate(timeout=60)[0]
    assert third.returncode == 2, printed
    assert "not restarted" in printed
    assert [attempt.kind for attempt in read_attempts(tmp_path / "tiny")] == ["PreemptedError", "ConfigError"]
    account = subprocess.run(
        [sys.executable, "-m", "launch", "supervise", "--account", str(tmp_path / "tiny")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "2 attempts of" in account
    assert "stopped by SIGTERM" in account


def test_nothing_trains_on_when_the_supervisor_is_killed(small_dataset: Path, tmp_path: Path) -> None:
    process = start(config_of(small_dataset, tmp_path))
    wait_for_step(tmp_path / "tiny", 4, process)
    job = psutil.Process(process.pid).children(recursive=True)
    assert len(job) >= 5, "the command, two ranks and their workers"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(job, timeout=60)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_a_refused_config_leaves_nothing_behind(small_dataset: Path, tmp_path: Path) -> None:
    config = config_of(small_dataset, tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": "no/such/folder"})})
    process = start(config)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 3, printed
    assert "not restarted" in printed
    assert not (tmp_path / "tiny").exists()
    assert "Traceback" not in printed
