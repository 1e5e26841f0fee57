"""A run that goes back: lines are set aside; MLflow shows what was left behind, and what goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pretrain.config import TrackerConfig
from pretrain.tracking.base import make_tracker
from pretrain.tracking.jsonl import JsonlTracker, read_lines, read_metrics
from pretrain.tracking.pictures import folder_of_step, take_back_pictures
from tests.pretrain.tracked_run import FACTS, client_of, log_steps, run_id

NOTE = "step 8: collapsing: the spread fell to 4 %; lr 1e-3 → 5e-4"


def points(run: Path, of: str, key: str = "loss/total") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client_of(run).get_metric_history(of, key)]


def test_lines_after_the_step_are_moved_with_the_number_of_the_rollback(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 9))
    tracker.roll_back(5, NOTE)
    log_steps(tracker, range(6, 8))
    tracker.roll_back(6, NOTE)
    log_steps(tracker, range(7, 10))
    tracker.close("done")
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 10))
    aside = read_lines(tmp_path / "rolled_back.jsonl")
    assert [(line["step"], line["rollback"]) for line in aside] == [(6, 1), (7, 1), (8, 1), (7, 2)]
    assert aside[0]["batch_digest"] == "d6"


def test_lines_of_one_step_are_one_and_later_values_win(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.log_metrics(2, {"probe/trained/position": 0.5, "loss": 9.0})
    tracker.log_metrics(2, {"probe/trained/position": 0.75})
    tracker.close("done")
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[1] == {
        "step": 2,
        "loss": 9.0,
        "optim/lr": 1e-3,
        "batch_digest": "d2",
        "probe/trained/position": 0.75,
    }


def test_mlflow_ends_one_run_and_goes_on_in_another(run: Path) -> None:
    from PIL import Image

    (run / "config.yaml").write_text("seed: 0\n")
    for step, colour in ((4, "red"), (8, "blue")):
        folder_of_step(run, step).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder_of_step(run, step) / "features.png")
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    tracker.log_file(run / "config.yaml")
    log_steps(tracker, range(1, 9))
    tracker.flush()
    left = run_id(run)
    tracker.roll_back(5, NOTE)
    tracker.log_metrics(6, {"loss": 0.25, "verdict": "healthy", "verdict_reason": "as at the start"})
    tracker.close("done")
    goes_on, client = run_id(run), client_of(run)
    old, new = client.get_run(left), client.get_run(goes_on)
    assert left != goes_on
    assert points(run, goes_on) == [*((step, 1 / step) for step in range(1, 6)), (6, 0.25)]
    assert [step for step, _ in points(run, left)] == list(range(1, 9))
    assert (old.info.status, new.info.status) == ("KILLED", "FINISHED")
    assert old.info.run_name == "tiny (rolled back at step 8)"
    assert new.info.run_name == "tiny"
    assert old.data.tags["foreframe.rolled_back"] == "at step 8 to 5"
    assert old.data.tags["foreframe.goes_on_in"] == goes_on
    assert new.data.tags["foreframe.goes_on_from"].split()[0] == left
    assert NOTE in new.data.tags["mlflow.note.content"]
    assert left in new.data.tags["mlflow.note.content"]
    assert goes_on in old.data.tags["mlflow.note.content"]
    assert new.data.tags["verdict"] == "healthy"
    assert new.data.params == old.data.params
    assert len(new.inputs.dataset_inputs) == 1
    assert "config.yaml" in [file.path for file in client.list_artifacts(goes_on)]
    kept = {file.path.split("+")[2] for file in client.list_artifacts(goes_on, "images")}
    assert kept == {"4"}, "the picture of step 8 is of what was left behind"


def test_each_of_two_rollbacks_leaves_a_run_behind(run: Path) -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 6))
    tracker.roll_back(3, NOTE)
    log_steps(tracker, range(4, 7))
    tracker.roll_back(4, NOTE)
    log_steps(tracker, range(5, 8))
    tracker.close("done")
    found = client_of(run).search_runs([json.loads((run / "mlflow_run.json").read_text())["experiment_id"]])
    assert sorted(each.info.run_name for each in found) == [
        "tiny",
        "tiny (rolled back at step 5)",
        "tiny (rolled back at step 6)",
    ]
    assert [step for step, _ in points(run, run_id(run))] == list(range(1, 8))


def test_a_rollback_while_the_server_is_away_comes_when_it_is_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pretrain.tracking import sender

    monkeypatch.setattr(sender, "GATHER_S", 0.01)
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.02)
    said: list[str] = []
    tracker = make_tracker(TrackerConfig(), run, say=said.append)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.flush()
    left = run_id(run)
    # Each call fails at its first attempt, that of the new run after the server has taken it.
    for name in ("log_batch", "create_run", "set_terminated", "update_run"):
        real, tried = getattr(MlflowClient, name), [0]

        def flaky(
            self: MlflowClient,
            *args: Any,
            real: Any = real,
            tried: list[int] = tried,
            name: str = name,
            **given: Any,
        ) -> Any:
            tried[0] += 1
            found = real(self, *args, **given) if tried[0] > 1 or name == "create_run" else None
            if tried[0] == 1:
                raise MlflowException("connection reset")
            return found

        monkeypatch.setattr(MlflowClient, name, flaky)
    log_steps(tracker, range(4, 9))
    tracker.roll_back(5, NOTE)
    log_steps(tracker, range(6, 11))
    tracker.close("done")
    goes_on = run_id(run)
    assert [step for step, _ in points(run, left)] == list(range(1, 9))
    assert points(run, goes_on) == [(step, 1 / step) for step in range(1, 11)]
    experiment = json.loads((run / "mlflow_run.json").read_text())["experiment_id"]
    assert len(client_of(run).search_runs([experiment])) == 2, "no run was made twice"
    assert "answers again" in said[-1]


def test_a_rollback_that_a_killed_process_could_not_tell_is_told_at_resume(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    tracker = make_tracker(TrackerConfig(), run, say=lambda _: None)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 9))
    tracker.flush()
    left = run_id(run)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_run", refuse)
        tracker.roll_back(5, NOTE)
        log_steps(tracker, range(6, 8))
        assert run_id(run) == left
    # and the process is gone; its thread, too, in what follows
    tracker.trackers[1]._sender.stop()  # type: ignore[attr-defined]
    tracker.trackers[1]._sender.join()  # type: ignore[attr-defined]
    resumed = make_tracker(TrackerConfig(), run, say=pytest.fail)
    resumed.start(FACTS, 6)
    log_steps(resumed, range(7, 11))
    resumed.close("done")
    assert [step for step, _ in points(run, run_id(run))] == list(range(1, 11))
    assert client_of(run).get_run(left).data.tags["foreframe.rolled_back"] == "at step 8 to 5"
    assert "rollbacks_to_tell" not in json.loads((run / "mlflow_run.json").read_text())


def test_a_rollback_that_no_tracker_was_told_of_is_made_up_for_at_resume(run: Path) -> None:
    """Killed between health.jsonl and the tracker; and at the next start it is known."""
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 9))
    tracker.close("failed")
    left = run_id(run)
    facts = dataclasses.replace(FACTS, rollbacks=((8, 5, "collapsing: the spread is gone"),))
    for resumed_at, steps in ((5, range(6, 8)), (7, range(8, 10))):
        resumed = make_tracker(TrackerConfig(), run, say=pytest.fail)
        resumed.start(facts, resumed_at)
        for step in steps:
            resumed.log_metrics(step, {"loss": 7.0})
        resumed.close("done")
    shown = points(run, run_id(run))
    assert shown == [*((step, 1 / step) for step in range(1, 6)), *((step, 7.0) for step in range(6, 10))]
    assert client_of(run).get_run(left).data.tags["foreframe.rolled_back"] == "at step 8 to 5"
    experiment = json.loads((run / "mlflow_run.json").read_text())["experiment_id"]
    assert len(client_of(run).search_runs([experiment])) == 2


def test_a_record_that_is_damaged_in_mid_run_holds_no_rollback_up(run: Path) -> None:
    said: list[str] = []
    tracker = make_tracker(TrackerConfig(), run, say=said.append)
    tracker.start(dataclasses.replace(FACTS, rollbacks=((4, 2, "before"),)), 0)
    log_steps(tracker, range(1, 9))
    tracker.flush()
    left = run_id(run)
    (run / "mlflow_run.json").write_text('{"run_id": ')
    tracker.roll_back(5, NOTE)
    log_steps(tracker, range(6, 10))
    tracker.close("done")
    assert len(said) == 1 and "mlflow_run.json is damaged" in said[0] and "written anew" in said[0]
    assert run_id(run) != left
    assert [step for step, _ in points(run, run_id(run))] == list(range(1, 10))
    assert json.loads((run / "mlflow_run.json").read_text())["rollbacks"] == 2, "none is told again at resume"


def test_each_picture_of_a_step_comes_once_after_a_kill(run: Path) -> None:
    """Of 2 and 6 the server has them, of 4 it has nothing; the run goes on from 4 and draws 6 again."""

    def draw(step: int, colour: str) -> Path:
        path = folder_of_step(run, step) / "clip-masks.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
        return path

    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 8))
    for step, colour in ((2, "red"), (4, "green"), (6, "blue")):
        path = draw(step, colour)
        if step != 4:
            tracker.log_picture(path, step)
    tracker.flush()  # and no close
    take_back_pictures(run, after=4)
    resumed = make_tracker(TrackerConfig(), run, say=pytest.fail)
    resumed.start(FACTS, 4)
    log_steps(resumed, range(5, 8))
    resumed.log_picture(draw(6, "navy"), 6)
    resumed.close("done")
    images = [file.path for file in client_of(run).list_artifacts(run_id(run), "images")]
    assert sorted(path.split("+")[2] for path in images if path.endswith(".png")) == ["2", "4", "6"]
    assert len(images) == 6, "each whole and small"
    (shown,) = (run / "mlartifacts").rglob("pictures/clip-masks.png")
    with Image.open(shown) as newest:
        assert newest.getpixel((0, 0)) == (0, 0, 128), "the newest, as it was drawn last"


def test_a_list_of_images_that_is_refused_doubles_none_of_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    path = folder_of_step(run, 2) / "clip-masks.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(path)
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.log_picture(path, 2)
    tracker.close("stopped")

    def refuse(*_: Any) -> None:
        raise ValueError("this store lists nothing")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "list_artifacts", refuse)
        resumed = make_tracker(TrackerConfig(), run, say=said.append)
        resumed.start(FACTS, 3)
        log_steps(resumed, range(4, 6))
        resumed.close("done")
    assert len(said) == 1 and "left out in MLflow: a look at what pictures there are" in said[0]
    assert [step for step, _ in points(run, run_id(run))] == list(range(1, 6))
    assert len(client_of(run).list_artifacts(run_id(run), "images")) == 2


def test_a_real_run_that_goes_back_has_each_point_once(
    small_dataset: Path, tmp_path: Path, shared_store: str
) -> None:
    from data_pipeline.errors import CollapsedError
    from launch.train import run_train
    from pretrain.tracking.mlflow import make_client
    from tests.small_dataset import tiny_config

    rollback = {"times": 1, "lr_scale": 0.5}
    config = tiny_config(
        small_dataset,
        tmp_path,
        # from the second look on the spread counts as gone
        health={"every": 5, "std_floor": 1.0, "patience": 2, "on_collapse": "rollback", "rollback": rollback},
        train={"steps": 12, "checkpoint_every": 1, "keep_checkpoints": 1},
        target={"momentum": {"start": 0.0, "end": 0.0}},
        tracker={"kind": "mlflow", "uri": shared_store},
    )
    with pytest.raises(CollapsedError):
        run_train(config, quiet=True)
    run, client = tmp_path / "tiny", make_client(shared_store)
    record = json.loads((run / "mlflow_run.json").read_text())
    now = client.get_run(record["run_id"])
    assert (now.info.run_name, now.info.status) == ("tiny", "FAILED")
    assert now.data.tags["verdict"] == "collapsing"
    for key in ("loss", "optim/lr"):
        shown = client.get_metric_history(record["run_id"], "loss/total" if key == "loss" else key)
        assert [(m.step, m.value) for m in shown] == [(line["step"], line[key]) for line in read_metrics(run)]
    found = client.search_runs([record["experiment_id"]])
    left = [each.info.run_name for each in found if each.info.status == "KILLED"]
    assert left == ["tiny (rolled back at step 10)"]
