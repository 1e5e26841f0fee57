"""MLflow gets each point of a run once, and holds no run up; with its own sqlite store."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from pretrain.config import TrackerConfig
from pretrain.tracking.base import add_results, add_to_group, make_tracker
from pretrain.tracking.mlflow.client import artifacts_beside, local_uri, make_client, make_store
from tests.pretrain.tracked_run import FACTS, get_run, history, log_steps


def _train(run: Path, resumed_at: int, steps: range, status: Any = "done") -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS, resumed_at)
    log_steps(tracker, steps)
    tracker.close(status)


def test_mlflow_holds_parameters_tags_data_set_and_curves(run: Path) -> None:
    _train(run, 0, range(1, 6))
    found = get_run(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "tiny"
    assert found.data.params["objective.masks"] == "blocks 8; blocks 2"
    assert found.data.params["init.weights"] == "s3://***@bucket/x"
    assert found.data.tags["commit"] == "abc123"
    assert found.inputs.dataset_inputs[0].dataset.digest == "f00d"
    assert history(run, "loss/total") == [1, 2, 3, 4, 5]
    assert "batch_digest" not in found.data.metrics


def test_a_resumed_run_continues_its_curves_without_doubled_points(run: Path) -> None:
    _train(run, 0, range(1, 8), "stopped")
    first = get_run(run)
    assert first.info.status == "KILLED"
    _train(run, 5, range(6, 11))
    second = get_run(run)
    assert second.info.run_id == first.info.run_id
    assert second.info.status == "FINISHED"
    assert history(run, "loss/total") == list(range(1, 11))
    assert len(second.inputs.dataset_inputs) == 1


def test_points_that_a_killed_process_left_unsent_come_at_resume(run: Path) -> None:
    _train(run, 0, range(1, 3))
    with (run / "metrics.jsonl").open("a") as file:  # logged to the file, never sent
        file.write('{"step": 3, "loss": 0.5}\n{"step": 4, "loss": null}\n')
    _train(run, 4, range(5, 7))
    assert history(run, "loss/total") == [1, 2, 3, 5, 6]


def test_pictures_and_files_are_artifacts(run: Path) -> None:
    from PIL import Image

    from pretrain.tracking.mlflow import local_uri, make_client

    (run / "a report.html").write_text("<p>x")
    Image.new("RGB", (8, 8), "red").save(run / "masks.png")
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    tracker.log_file(run / "a report.html")
    tracker.log_picture(run / "masks.png", 3)
    tracker.close("done")
    client = make_client(local_uri(run))
    run_id = get_run(run).info.run_id
    assert "a report.html" in [file.path for file in client.list_artifacts(run_id)]
    assert any("masks" in file.path for file in client.list_artifacts(run_id, "images"))
    assert (run / "mlartifacts").is_dir()


def test_results_are_added_to_an_ended_run_and_leave_its_status_and_curves(run: Path) -> None:
    from PIL import Image

    from pretrain.tracking.mlflow import local_uri, make_client

    _train(run, 0, range(1, 4), "stopped")
    ended = get_run(run).info.end_time
    Image.new("RGB", (8, 8), "red").save(run / "masks.png")
    (run / "report.html").write_text("<p>x")
    before = (run / "metrics.jsonl").read_bytes()
    add_results(
        TrackerConfig(),
        run,
        step=3,
        scores={"probe/trained/mean average precision": 0.5},
        pictures=[run / "masks.png"],
        files=[run / "report.html"],
        say=pytest.fail,
    )
    found = get_run(run)
    assert found.info.status == "KILLED"
    assert found.info.end_time == ended, "how long it took is as it was"
    assert found.data.metrics["probe/trained/mean average precision"] == 0.5
    assert history(run, "loss/total") == [1, 2, 3]
    assert (run / "metrics.jsonl").read_bytes() == before
    assert [f.path for f in make_client(local_uri(run)).list_artifacts(found.info.run_id)] == [
        "images",
        "pictures",
        "report.html",
    ]


def test_files_of_a_group_lie_at_the_run_above(run: Path) -> None:
    table = run.parent / "table.md"
    table.write_text("| a |")
    alone = run.parent / "alone"
    alone.mkdir()
    for folder, group in ((run, "collapse: runs"), (alone, None)):
        tracker = make_tracker(TrackerConfig(), folder, say=pytest.fail)
        tracker.start(dataclasses.replace(FACTS, group=group))
        tracker.close("done")
        add_to_group(TrackerConfig(), folder, [table], say=pytest.fail)
    client = make_client(local_uri(run))
    below = get_run(run)
    above = client.get_run(below.data.tags["mlflow.parentRunId"])
    assert above.info.run_name == "collapse: runs"
    assert [file.path for file in client.list_artifacts(above.info.run_id)] == ["table.md"]
    assert client.list_artifacts(below.info.run_id) == []
    assert make_client(local_uri(alone)).list_artifacts(get_run(alone).info.run_id) == []
    add_to_group(TrackerConfig(), run.parent / "never begun", [table], say=pytest.fail)


def test_results_of_a_run_that_no_server_knows_are_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    add_results(TrackerConfig(), tmp_path, step=1, scores={"probe/x": 1.0}, say=pytest.fail)
    add_results(TrackerConfig(kind="jsonl"), tmp_path, step=1, scores={"probe/x": 1.0}, say=pytest.fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", ["0", "1"], ids=["same", "mended"])
def test_a_run_that_starts_over_gets_a_new_page_with_its_own_points(run: Path, seed: str) -> None:
    """Killed before its first checkpoint: the config may be mended, and every step comes again."""
    from pretrain.tracking.mlflow import local_uri, make_client

    first = make_tracker(TrackerConfig(), run, say=pytest.fail)
    first.start(FACTS)
    log_steps(first, range(1, 6))
    first.flush()  # and no close
    old = get_run(run).info.run_id
    second = make_tracker(TrackerConfig(), run, say=pytest.fail)
    second.start(dataclasses.replace(FACTS, params=FACTS.params | {"seed": seed}))
    log_steps(second, range(1, 4))
    second.close("done")
    new = get_run(run)
    assert new.info.run_id != old
    assert new.data.params["seed"] == seed
    assert history(run, "loss/total") == [1, 2, 3]
    assert make_client(local_uri(run)).get_run(old).info.status == "KILLED"


@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_run_without_points_is_begun_again_unless_its_config_was_mended(run: Path, seed: str) -> None:
    _train(run, 0, range(0))
    old = get_run(run).info.run_id
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(dataclasses.replace(FACTS, params=FACTS.params | {"seed": seed}))
    tracker.close("done")
    assert (get_run(run).info.run_id == old) == (seed == FACTS.params["seed"])


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow_run.json"])
def test_damaged_files_of_a_run_are_named_with_what_to_do(run: Path, name: str) -> None:
    _train(run, 0, range(1, 3))
    (run / name).write_bytes(b'{"run_id": "' * 100)
    with pytest.raises(UsageError, match=rf"{name}.*remove it"):
        add_results(TrackerConfig(), run, step=2, scores={"probe/x": 1.0}, say=pytest.fail)


def test_a_store_that_could_not_be_made_is_taken_away(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves half a database, which MLflow would refuse for ever."""
    from sqlalchemy.exc import OperationalError

    (run / "mlflow.db").unlink()

    def full(_: str) -> None:
        (run / "mlflow.db").write_bytes(b"half")
        raise OperationalError("CREATE TABLE tags", None, Exception("database or disk is full"))

    monkeypatch.setattr("pretrain.tracking.mlflow.client.make_client", full)
    with pytest.raises(UsageError, match=r"disk is full.*\nmake room"):
        make_tracker(TrackerConfig(), run).start(FACTS)
    assert not (run / "mlflow.db").exists()


def test_a_store_is_made_once_by_whoever_comes_first_and_a_killed_ones_half_is_made_anew(
    tmp_path: Path,
) -> None:
    """Runs of a sweep begin together; without a lock one found the other's half-made tables."""
    path = tmp_path / "shared" / "mlflow.db"
    path.parent.mkdir()
    path.with_name(".mlflow.db.part").write_bytes(b"half of a database")
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(make_store, [path] * 3)) == [None] * 3
    assert [each.name for each in path.parent.iterdir()] == ["mlflow.db"]
    client = make_client(f"sqlite:///{path}")
    assert client.get_experiment("0").artifact_location == f"{artifacts_beside(f'sqlite:///{path}')}/0"
    before = path.read_bytes()
    make_store(path)
    assert path.read_bytes() == before
