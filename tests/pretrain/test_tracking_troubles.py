"""A server that is away, or refuses what it is sent: it holds no run up, and loses no point."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from pretrain.config import TrackerConfig
from pretrain.tracking.base import make_tracker
from tests.pretrain.tracked_run import FACTS, get_run, history, log_steps


def test_a_server_that_is_away_at_the_start_is_a_sentence_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://ann:hunter2@127.0.0.1:{port}"
    tracker = make_tracker(TrackerConfig(uri=uri), tmp_path)
    with pytest.raises(UsageError) as caught:
        tracker.start(FACTS)
    assert f"http://***@127.0.0.1:{port}" in str(caught.value)
    assert "tracker.kind=jsonl" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_goes_away_and_comes_back_loses_no_point(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pretrain.tracking import mlflow as ours
    from pretrain.tracking import sender

    monkeypatch.setattr(sender, "GATHER_S", 0.01)
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.02)
    said: list[str] = []
    tracker = ours.MlflowTracker(run, None, said.append)
    tracker.start(FACTS)
    real, failures = MlflowClient.log_batch, [3]

    def flaky(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise MlflowException("connection refused")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    log_steps(tracker, range(1, 30))
    tracker.close("done")
    assert history(run, "loss/total") == list(range(1, 30))
    assert len(said) == 2
    assert "does not answer" in said[0]
    assert "answers again" in said[1]


def away_at_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the first attempts to connect fail, with no pauses between them to speak of."""
    from pretrain.tracking import sender
    from pretrain.tracking.mlflow import client as ours

    monkeypatch.setattr(sender, "GATHER_S", 0.01)
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.02)
    real, left = ours.make_client, [times]

    def connect(uri: str) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("connection refused")
        return real(uri)

    monkeypatch.setattr(ours, "make_client", connect)


@pytest.mark.parametrize(("resumed_at", "steps"), [(5, range(6, 11)), (0, range(1, 11))])
def test_a_server_that_is_away_when_a_run_goes_on_gets_each_point_once_it_is_back(
    run: Path, monkeypatch: pytest.MonkeyPatch, resumed_at: int, steps: range
) -> None:
    """From a checkpoint, or from the start on another page; some points of before were never sent."""
    from pretrain.tracking import mlflow as ours

    config = TrackerConfig(uri=ours.local_uri(run))  # not the run's own, as a server would be
    ours.make_client(str(config.uri)).create_experiment(FACTS.experiment, (run / "mlartifacts").as_uri())
    first = make_tracker(config, run, say=pytest.fail)
    first.start(FACTS)
    log_steps(first, range(1, 4))
    first.close("stopped")
    before = get_run(run).info.run_id
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "loss": {1 / step}}}\n' for step in range(4, 8))
    said: list[str] = []
    with monkeypatch.context() as patch:
        away_at_first(patch, 3)
        tracker = make_tracker(config, run, say=said.append)
        tracker.start(FACTS, resumed_at)
        (run / "note.txt").touch()
        tracker.log_file(run / "note.txt")
        log_steps(tracker, steps)
        tracker.flush()  # and does not wait
        tracker.close("done")
    assert history(run, "loss/total") == list(range(1, 11))
    assert (get_run(run).info.run_id == before) == (resumed_at > 0)
    assert get_run(run).info.status == "FINISHED"
    assert ["does not answer" in said[0], "answers again" in said[1], len(said)] == [True, True, 2]


def test_a_server_that_refuses_the_run_when_it_is_back_costs_the_run_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.tracking import mlflow as ours

    client = ours.make_client(ours.local_uri(run))
    client.delete_experiment(client.create_experiment("gone"))
    config = TrackerConfig(uri=ours.local_uri(run))
    said: list[str] = []
    with monkeypatch.context() as patch:
        away_at_first(patch, 1)
        tracker = make_tracker(config, run, say=said.append)
        tracker.start(dataclasses.replace(FACTS, experiment="gone"), 5)
        log_steps(tracker, range(6, 9))
        tracker.close("done")
    assert "nothing more is sent to MLflow" in said[1]
    assert "'gone'" in said[1] and "was deleted there: restore it" in said[1]
    assert "unexpected" not in said[1]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow  # it waits for the sender's own limits, 30 s
def test_a_server_that_stays_away_does_not_hold_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from pretrain.tracking import mlflow as ours
    from pretrain.tracking import sender

    monkeypatch.setattr(ours.tracker, "CLOSE_WAIT_S", 0.2)
    monkeypatch.setattr(sender, "GATHER_S", 0.01)
    said: list[str] = []
    tracker = ours.MlflowTracker(run, None, said.append)
    tracker.start(FACTS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    log_steps(tracker, range(1, 4))
    tracker.flush()
    tracker.close("done")
    assert "does not answer" in said[0]
    assert "when this run is resumed" in said[-1]


def test_a_file_that_is_gone_or_damaged_holds_no_later_point_up(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.tracking import mlflow as ours

    monkeypatch.setattr(ours.tracker, "CLOSE_WAIT_S", 5.0)
    (run / "cut.png").write_bytes(b"\x89PNG no more")
    said: list[str] = []
    tracker = ours.MlflowTracker(run, None, said.append)
    tracker.start(FACTS)
    tracker.log_file(run / "gone.html")
    tracker.log_picture(run / "cut.png", 1)
    log_steps(tracker, range(1, 4))
    tracker.close("done")
    assert history(run, "loss/total") == [1, 2, 3]
    assert len(said) == 2, said
    assert "left out in MLflow: the file gone.html" in said[0]
    assert "left out in MLflow: the picture cut.png" in said[1]


@pytest.mark.parametrize(
    ("status", "is_hopeless"),
    [(403, True), (413, True), (404, True), (408, False), (429, False), (500, False), (503, False)],
)
def test_what_a_server_refuses_is_left_out_and_what_it_cannot_take_now_is_kept(
    status: int, is_hopeless: bool
) -> None:
    import requests
    from mlflow.utils.rest_utils import augmented_raise_for_status

    from pretrain.tracking.mlflow.client import named_errors
    from pretrain.tracking.sender import AwayError, LeftOutError

    answer = requests.Response()
    answer.status_code, answer._content = status, b"<html>no"
    with pytest.raises(LeftOutError if is_hopeless else AwayError, match=str(status)), named_errors():
        augmented_raise_for_status(answer)  # what sends MLflow's files


def test_points_that_are_too_large_for_a_proxy_are_refused() -> None:
    import requests
    from mlflow.utils.rest_utils import verify_rest_response

    from pretrain.tracking.mlflow.client import named_errors
    from pretrain.tracking.sender import AwayError, LeftOutError

    answer = requests.Response()
    answer._content = b"<html>no"
    for status, kind in ((413, LeftOutError), (502, AwayError)):
        answer.status_code = status
        with pytest.raises(kind), named_errors():
            verify_rest_response(answer, "/api/2.0/mlflow/runs/log-batch")


def test_a_file_that_the_server_refuses_holds_no_later_point_up(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    from mlflow import MlflowClient

    from pretrain.tracking import mlflow as ours

    answer = requests.Response()
    answer.status_code = 413

    def refuse(*_: Any, **__: Any) -> None:
        answer.raise_for_status()

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    monkeypatch.setattr(ours.tracker, "CLOSE_WAIT_S", 5.0)
    (run / "large.html").write_text("x")
    said: list[str] = []
    tracker = ours.MlflowTracker(run, None, said.append)
    tracker.start(FACTS)
    tracker.log_file(run / "large.html")
    log_steps(tracker, range(1, 4))
    tracker.close("done")
    assert history(run, "loss/total") == [1, 2, 3]
    assert len(said) == 1 and "left out in MLflow: the file large.html" in said[0]


def test_what_nobody_foresaw_is_said_once_and_no_flush_waits_for_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from pretrain.tracking import mlflow as ours

    said: list[str] = []
    tracker = ours.MlflowTracker(run, None, said.append)
    tracker.start(FACTS)
    waits: list[float] = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: {}["nothing"])
    log_steps(tracker, range(1, 4))
    thread = tracker._sender
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
    real = thread._changed.wait_for
    monkeypatch.setattr(
        thread._changed, "wait_for", lambda done, timeout: waits.append(done()) or real(done, timeout)
    )
    tracker.flush()
    assert waits == [True]  # there was nothing to wait for
    tracker.close("done")
    assert "unexpected KeyError" in said[0]
    assert len([words for words in said if "unexpected" in words]) == 1
    assert "when this run is resumed" in said[-1]
