"""`foreframe status` of a run that was submitted: before it begins, while it runs, when it was refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.config import dump_config
from launch.lock import lock_run
from launch.status import block, plain, read_status
from tests.small_dataset import tiny_config

TOLD = {"watch": "squeue -j 17", "stop": "scancel 17"}


def submitted(folder: Path, state: str = "submitted", number: str = "001") -> Path:
    """A run's folder that holds a submission to Slurm and nothing else."""
    config = tiny_config(folder / "data", folder, name="tiny", train={"steps": 200})
    place = folder / "tiny" / "submissions" / number
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(dump_config(config))
    record = {
        "place": {"kind": "slurm"},
        "state": state,
        "id": "17" if state == "submitted" else None,
        "told": TOLD,
        "submitted": "2026-01-02T03:04:05+00:00",
    }
    (place / "submission.json").write_text(json.dumps(record))
    return folder / "tiny"


def said(run: Path) -> str:
    return "\n".join(line.plain for line in block(read_status(run), 100))


def test_a_job_that_waits_says_where_and_how_to_see_it(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    status = read_status(run)
    assert status.state.word == "submitted" and "slurm 17" in status.state.reason
    assert status.following == "squeue -j 17"
    assert status.steps == 200 and not status.folder.troubles, "the submission's config stands for the run's"
    assert "job     slurm 17; scancel 17 stops it" in said(run)
    found = plain(status)
    assert found["submission"]["place"] == "slurm" and found["submission"]["id"] == "17"
    json.dumps(found)


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [("dry run", "stopped", "a dry run"), ("not started: no such partition", "failed", "no such partition")],
)
def test_what_was_not_started_is_not_waited_for(tmp_path: Path, state: str, word: str, reason: str) -> None:
    status = read_status(submitted(tmp_path, state))
    assert status.state.word == word and reason in status.state.reason
    assert "scancel" not in said(tmp_path / "tiny")


def test_the_last_submission_counts(tmp_path: Path) -> None:
    submitted(tmp_path, "not started: no such partition")
    assert read_status(submitted(tmp_path, number="002")).state.word == "submitted"


def test_a_run_that_lives_says_what_stops_its_job(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    (run / "config.yaml").write_text((run / "submissions/001/config.yaml").read_text())
    with lock_run(run):
        assert read_status(run).state.word == "running"
        assert "scancel 17 stops it" in said(run)
    status = read_status(run)
    assert status.state.word == "failed", "it has begun, and died without a word"
    assert status.following == "squeue -j 17", "its job may start it again"
    (run / "result.json").write_text("{}")
    assert "scancel" not in said(run), "it has finished"


@pytest.mark.parametrize("text", ["", "[]", '{"place": 1, "told": [], "id": {}}', '{"state": null}'])
def test_a_damaged_record_is_no_trouble_for_the_rest(tmp_path: Path, text: str) -> None:
    run = submitted(tmp_path)
    (run / "submissions/001/submission.json").write_text(text)
    assert read_status(run).state.word in ("stopped", "failed")
    json.dumps(plain(read_status(run)))
    assert said(run)
