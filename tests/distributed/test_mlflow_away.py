"""A real MLflow server, killed and started again: the run goes on, no point is lost, none comes twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import EXIT_PREEMPTED
from launch.config import dump_config
from pretrain.checkpoint import newest_named
from pretrain.config import RunConfig
from pretrain.features import Encoder
from pretrain.tracking.jsonl import read_metrics
from tests.servers.process import Server
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]  # the server alone takes up to a minute to start
ROOT = Path(__file__).parents[2]
LOG_EVERY, SAVE_EVERY = 5, 20


class Trained:
    """`foreframe train` of a run without an end, and what it has printed so far."""

    def __init__(self, config: RunConfig) -> None:
        given = Path(config.out) / "given.yaml"
        given.write_text(dump_config(config))
        self.run = Path(config.out) / config.name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", "train", str(given)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.printed.extend(self.process.stdout)

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not until():
            assert self.process.poll() is None, "".join(self.printed)
            assert time.monotonic() < deadline, "".join(self.printed)
            time.sleep(0.05)

    def wait_for_words(self, words: str) -> None:
        self.wait(lambda: any(words in line for line in self.printed))

    @property
    def step(self) -> int:
        lines = read_metrics(self.run)
        return lines[-1]["step"] if lines else 0

    def wait_for_steps(self, more: int) -> None:
        aim = self.step + more
        self.wait(lambda: self.step >= aim)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(timeout=150)
        self._reader.join(timeout=30)
        return status


@pytest.fixture
def begun(small_dataset: Path, tmp_path: Path, mlflow_server: Server) -> Iterator[Callable[[], Trained]]:
    """Starts the same run, each time it is called."""
    config = tiny_config(
        small_dataset,
        tmp_path,
        train={"steps": 1_000_000, "log_every": LOG_EVERY, "checkpoint_every": SAVE_EVERY},
        tracker={"kind": "mlflow", "uri": mlflow_server.endpoint},
    )
    all_of_them: list[Trained] = []

    def begin() -> Trained:
        all_of_them.append(Trained(config))
        return all_of_them[-1]

    yield begin
    for each in all_of_them:
        each.process.kill()


def run_id(run: Path) -> str:
    return str(json.loads((run / "mlflow_run.json").read_text())["run_id"])


def assert_each_point_is_there_once(run: Path, server: Server) -> None:
    from pretrain.tracking.mlflow import make_client

    client = make_client(server.endpoint)
    found = client.get_run(run_id(run))
    lines: list[dict[str, Any]] = read_metrics(run)
    shown = {"loss": "loss/total", "perf/clips_per_s": "perf/clips_per_s", "optim/momentum": "optim/momentum"}
    for key, name in shown.items():
        wanted = [(line["step"], line[key]) for line in lines]
        assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)] == wanted
    assert found.info.status == "KILLED", "as a run that was stopped"


def test_killed_in_mid_run_and_started_again(begun: Callable[[], Trained], mlflow_server: Server) -> None:
    train = begun()
    train.wait(lambda: train.step >= 2 * SAVE_EVERY)
    mlflow_server.kill()
    train.wait_for_words("does not answer; the run goes on")
    train.wait_for_steps(4 * SAVE_EVERY)
    mlflow_server.start()
    train.wait_for_words("answers again after")
    train.wait_for_steps(SAVE_EVERY)
    assert train.end(signal.SIGTERM) == EXIT_PREEMPTED, "".join(train.printed)
    assert_each_point_is_there_once(train.run, mlflow_server)


@pytest.mark.timeout(600)
def test_away_for_a_minute_of_a_run(
    begun: Callable[[], Trained], mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than any of the server's own limits and the sender's pauses; then all else goes its way too."""
    train = begun()
    train.wait(lambda: train.step >= 2 * SAVE_EVERY)
    mlflow_server.kill()
    gone_s, at = time.monotonic(), train.step
    train.wait(lambda: time.monotonic() - gone_s > 60)
    assert train.step > at + 2 * SAVE_EVERY, "and the run went on"
    mlflow_server.start()
    train.wait_for_words("answers again after")
    told = next(line for line in train.printed if "answers again after" in line)
    assert int(told.split("after ")[1].split(" s")[0]) >= 58
    train.wait_for_steps(SAVE_EVERY)
    assert train.end(signal.SIGTERM) == EXIT_PREEMPTED, "".join(train.printed)
    assert_each_point_is_there_once(train.run, mlflow_server)

    import mlflow

    from launch.weights import register_weights, run_export

    weights = run_export(
        train.run,
        tmp_path / "out",
        "foreframe",
        step=None,
        of=None,
        allow_partial=False,
        force=False,
        register="enc",
    )
    assert register_weights(train.run, tmp_path / "out", "enc", weights).version == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.endpoint)
    folder = mlflow.artifacts.download_artifacts("models:/enc/1", dst_path=str(tmp_path / "back"))
    assert Encoder.from_pretrained(folder).width == Encoder.from_pretrained(train.run).width


def test_away_when_a_killed_run_goes_on(begun: Callable[[], Trained], mlflow_server: Server) -> None:
    """Points that the killed process never sent, and those of the new one, come when the server does."""
    first = begun()
    first.wait(lambda: first.step >= 2 * SAVE_EVERY)
    before = run_id(first.run)
    mlflow_server.kill()
    first.wait_for_words("does not answer; the run goes on")
    first.wait_for_steps(4 * SAVE_EVERY)
    first.end(signal.SIGKILL)
    saved = newest_named(first.run)
    assert saved is not None
    second = begun()
    second.wait_for_words("does not answer; the run goes on")
    second.wait_for_words(f"{saved[0].name} at step {saved[1]['progress']['step']}")
    second.wait_for_steps(4 * SAVE_EVERY)
    mlflow_server.start()
    second.wait_for_words("answers again after")
    assert second.end(signal.SIGTERM) == EXIT_PREEMPTED, "".join(second.printed)
    assert run_id(second.run) == before
    assert_each_point_is_there_once(second.run, mlflow_server)
