"""What is seen of runs in MLflow: groups of charts and of runs, parameters, findings; and no secrets."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import TrackerConfig
from pretrain.tracking.base import DatasetFacts, Finding, add_results, make_tracker, without_secrets
from tests.pretrain.tracked_run import FACTS, client_of, get_run, log_steps

GROUPS = {"loss", "health", "optim", "data", "perf", "probe", "system"}


def test_every_metric_is_in_a_group(run: Path) -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    keys = ("loss", "loss/masks-1", "time_s", "checkpoint/failed", "health/target_std", "system/cpu_share")
    tracker.log_metrics(1, dict.fromkeys(keys, 0.5))
    tracker.close("done")
    found = set(get_run(run).data.metrics)
    assert len(found) == len(keys)
    assert {key.partition("/")[0] for key in found} <= GROUPS
    assert "loss" in json.loads((run / "metrics.jsonl").read_text()), "the file keeps its keys"


def test_what_changed_on_resume_is_a_tag_and_a_description_by_hand_stays(run: Path) -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.close("stopped")
    first = get_run(run)
    assert first.data.tags["mlflow.note.content"] == FACTS.description
    client_of(run).set_tag(first.info.run_id, "mlflow.note.content", "mine")
    changed = dataclasses.replace(
        FACTS, params=FACTS.params | {"seed": "1"}, tags=FACTS.tags | {"world_size": "4"}
    )
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(changed, 3)
    tracker.close("done")
    tags = get_run(run).data.tags
    assert get_run(run).data.params["seed"] == "0"
    assert tags["changed.seed"] == "0 → 1 at step 3"
    assert (tags["world_size"], tags["attempt"]) == ("4", "2")
    assert tags["mlflow.note.content"] == "mine"


def test_the_verdict_is_a_tag_that_follows(run: Path) -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    tracker.log_metrics(1, {"loss": 1.0, "verdict": "healthy", "verdict_reason": "as at the start"})
    tracker.log_metrics(2, {"loss": 1.0})
    tracker.log_metrics(3, {"loss": 1.0, "verdict": "collapsing", "verdict_reason": "the spread is gone"})
    tracker.close("stopped")
    tags = get_run(run).data.tags
    assert (tags["verdict"], tags["verdict_reason"]) == ("collapsing", "the spread is gone")


@pytest.mark.parametrize("group", ["lr sweep", 'ann\'s "best" runs'])
def test_runs_of_a_group_lie_below_one_run_however_many_start_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    from mlflow import MlflowClient

    from pretrain.tracking.mlflow import local_uri

    real, gate = MlflowClient.search_runs, threading.Barrier(3)

    def searched(self: MlflowClient, *args: Any, **given: Any) -> Any:
        found = real(self, *args, **given)
        if not found:  # all have looked, and found nothing, before the first makes one
            gate.wait(10)
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", searched)
    config = TrackerConfig(uri=local_uri(run))
    client_of(run).create_experiment(FACTS.experiment, (run / "mlartifacts").as_uri())
    folders = [run.parent / f"member-{number}" for number in range(3)]

    def train(folder: Path) -> None:
        begun.append(folder)
        folder.mkdir()
        tracker = make_tracker(config, folder, say=pytest.fail)
        tracker.start(dataclasses.replace(FACTS, name=folder.name, group=group))
        log_steps(tracker, range(1, 3))
        tracker.close("done")
        begun.remove(folder)

    begun: list[Path] = []
    threads = [threading.Thread(target=train, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert begun == [], "none failed"
    later = run.parent / "later"
    train(later)
    experiment = client_of(run).get_experiment_by_name(FACTS.experiment).experiment_id
    found = real(client_of(run), [experiment])
    parents = [each for each in found if "mlflow.parentRunId" not in each.data.tags]
    assert [each.info.run_name for each in parents] == [group]
    assert parents[0].info.status == "FINISHED"
    children = [each for each in found if each.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert sorted(each.info.run_name for each in children) == sorted([*(f.name for f in folders), "later"])


def test_runs_that_note_the_same_data_set_at_once_do_not_fail(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow 3.17 looks for a data set and then writes it; another run may have written it in between."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pretrain.tracking.mlflow import page

    monkeypatch.setattr(page, "PAUSE_S", 0.001)
    real, tried = MlflowClient.log_inputs, []

    def raced(self: MlflowClient, *args: Any, **given: Any) -> None:
        tried.append(1)
        if len(tried) < 3:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.digest")
        real(self, *args, **given)

    monkeypatch.setattr(MlflowClient, "log_inputs", raced)
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    tracker.close("done")
    assert len(tried) == 3
    assert get_run(run).inputs.dataset_inputs[0].dataset.digest == "f00d"


def test_a_finding_is_a_run_below_with_its_data_set_and_files(run: Path) -> None:
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.close("done")
    (run / "probe.json").write_text('{"api_key": "hunter2hunter2"}')
    finding = Finding(
        "probe at step 3",
        {"kind": "states", "clips": "160"},
        {"trained/position": 0.5, "untrained/position": 0.25},
        (DatasetFacts("held-out", "s3://ann:pw@bucket/y", "beef", 90, context="probe"),),
    )
    add_results(
        TrackerConfig(),
        run,
        step=3,
        scores={"probe/trained/position": 0.5},
        files=[run / "probe.json"],
        finding=finding,
        say=pytest.fail,
    )
    above, client = get_run(run), client_of(run)
    query = f"tags.`mlflow.parentRunId` = '{above.info.run_id}'"
    (below,) = client.search_runs([above.info.experiment_id], query)
    assert (below.info.run_name, below.info.status) == ("probe at step 3", "FINISHED")
    assert below.data.params == finding.params
    assert below.data.metrics == finding.scores
    assert below.inputs.dataset_inputs[0].tags[0].value == "probe"
    assert "pw" not in below.inputs.dataset_inputs[0].dataset.source
    assert [file.path for file in client.list_artifacts(below.info.run_id)] == ["probe.json"]
    kept = [path.read_text() for path in (run / "mlartifacts").rglob("probe.json")]
    assert kept == ['{"api_key": "***"}']
    assert above.data.metrics["probe/trained/position"] == 0.5


def test_no_secret_reaches_an_artifact(run: Path) -> None:
    files = {
        "config.yaml": "tracker: {uri: 'https://host/?access_token=hunter2hunter2'}\nseed: 0\n",
        "code.patch": "+aws_secret_access_key = hunter2hunter2\n+    model.fit(token_M, tokens=3)\n",
        "provenance.json": json.dumps({"command": ["uri=postgres://ann:hunter2@db/x"]}),
        "environment.txt": "torch==2.13.0\n",
    }
    tracker = make_tracker(TrackerConfig(), run, say=pytest.fail)
    tracker.start(FACTS)
    for name, text in files.items():
        (run / name).write_text(text)
        tracker.log_file(run / name)
    tracker.close("done")
    shown = {
        path.name: path.read_text()
        for path in (run / "mlartifacts").rglob("*")
        if path.is_file() and path.name in files
    }
    assert set(shown) == set(files)
    assert not any("hunter2" in text for text in shown.values())
    assert "seed: 0" in shown["config.yaml"]
    assert "model.fit(token_M, tokens=3)" in shown["code.patch"]
    assert shown["environment.txt"] == files["environment.txt"]
    assert (run / "config.yaml").read_text() == files["config.yaml"], "the run's own stays as it was"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('password: "correct horse"', 'password: "***"'),
        ("PASSWORD='correcthorse'", "PASSWORD='***'"),
        ('{"api_key": "abcdef123456"}', '{"api_key": "***"}'),
        ("export HF=hf_abcdefghijklmnopqrst", "export HF=***"),
        ("id AKIAABCDEFGHIJKLMNOP", "id ***"),
        ("url = github_pat_11ABCDEFG0abcdefghij_0123456789x", "url = ***"),
        ("x = eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN", "x = ***"),
        ('eyJ is how base64 of {" begins', 'eyJ is how base64 of {" begins'),
        ("-H 'Authorization: Bearer a1b2c3d4e5'", "-H 'Authorization: Bearer ***'"),
        ("curl -H 'authorization: bearer abcdefghijklmnopqrstuv'", "curl -H 'authorization: bearer ***'"),
        ("the bearer authentication of a server", "the bearer authentication of a server"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nx", "***\nx"),
        ("secret: null", "secret: null"),
        ("def tokens(secret: Callable[[], str])", "def tokens(secret: Callable[[], str])"),
    ],
)
def test_what_looks_like_a_secret_is_not_written_out(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
