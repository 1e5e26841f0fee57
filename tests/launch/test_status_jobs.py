"""`foreframe status` of jobs over time: one that waits again, has ended, was refused, or makes a data set."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from launch.config import dump_config
from launch.status import block, plain, read_status, table
from launch.submit.base import Job
from launch.submit.freeze import freeze, next_folder, read_record
from launch.submit.local import LocalPlace
from launch.submit.node_process import start_time_of, told_of
from launch.submit.submission import Asked, submit
from launch.submitted import submission_folders
from tests.small_dataset import tiny_config

TOLD = {"watch": "squeue --jobs=17", "log": "tail -F 17.log", "stop": "scancel 17"}
HOUR_S = 3600.0


def submission(run: Path, number: str, kind: str = "slurm", **record: Any) -> Path:
    folder = run / "submissions" / number
    (folder / "logs").mkdir(parents=True)
    config = tiny_config(run.parent / "data", run.parent, name=run.name, train={"steps": 200})
    (folder / "config.yaml").write_text(dump_config(config))
    plain = {"place": {"kind": kind}, "state": "submitted", "told": TOLD, "id": "17", "kind": "train"}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    (folder / "submission.json").write_text(json.dumps({"submitted": when, **plain, **record}))
    return folder


def begun(run: Path, ended_ago_s: float, result: Mapping[str, object]) -> Path:
    """A run that has ended so long ago."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(tiny_config(run.parent / "data", run.parent, name=run.name)))
    (run / "result.json").write_text(json.dumps(result))
    os.utime(run / "result.json", (time.time() - ended_ago_s,) * 2)
    return run


def said(run: Path) -> str:
    return "\n".join(line.plain for line in block(read_status(run), 110))


def node(folder: Path, pid: int, start_time: int, code: int | None = None, number: int = 0) -> None:
    logs = folder / "logs"
    (logs / f"node-{number}.pid").write_text(f"{socket.gethostname()} {pid} {start_time}\n")
    if code is not None:
        (logs / f"node-{number}.exit").write_text(f"{code}\n")


@pytest.mark.parametrize("ended_ago_s", [HOUR_S, -HOUR_S])
def test_a_preempted_run_that_waits_in_a_queue_is_left_to_its_job(tmp_path: Path, ended_ago_s: float) -> None:
    """Submitted again since it ended; or queued again by Slurm, of a submission from before."""
    run = begun(tmp_path / "tiny", ended_ago_s, {"stopped": "SIGTERM"})
    folder = submission(run, "001")
    status, shown = read_status(run), said(run)
    assert status.state.word == "preempted" and status.following == "squeue --jobs=17"
    assert "job     slurm 17; scancel 17 stops it" in shown and "log     tail -F 17.log" in shown
    log = folder / "logs" / "17.log"
    log.write_text("2026-11-26T10:00:00 job 17 on n1, start 1\n2026-11-26T11:00:00 ended with exit code 75\n")
    assert read_status(run).following == f"foreframe train {run}"
    log.write_text(log.read_text() + "2026-11-26T12:00:00 job 17 on n2, start 2\n")
    assert read_status(run).following == "squeue --jobs=17"


def test_a_finished_run_is_not_waited_for_unless_it_was_submitted_again(tmp_path: Path) -> None:
    run = begun(tmp_path / "tiny", -HOUR_S, {})
    submission(run, "001")
    assert read_status(run).following == f"foreframe probe {run}" and "slurm 17" not in said(run)
    begun(run, HOUR_S, {})
    assert read_status(run).following == "squeue --jobs=17"


@pytest.mark.parametrize("later", [{"state": "dry run"}, {"state": "not started: no room"}])
def test_a_job_is_not_hidden_by_a_later_one_that_was_not_started(
    tmp_path: Path, later: dict[str, str]
) -> None:
    run = tmp_path / "tiny"
    submission(run, "001")
    submission(run, "002", **later, id=None, told={})
    assert read_status(run).state.word == "submitted" and "slurm 17" in said(run)
    node(submission(run, "003", "local", id=None), 1, 1, code=2)
    assert "slurm 17" in said(run), "the later one was refused, as the first runs"


@pytest.mark.parametrize(
    ("code", "word", "told"),
    [(1, "failed", "exit code 1"), (75, "preempted", "exit code 75"), (None, "failed", "left no exit code")],
)
@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_a_job_that_is_dead_is_not_waited_for(
    tmp_path: Path, kind: str, code: int | None, word: str, told: str
) -> None:
    run = tmp_path / "tiny"
    folder = submission(run, "001", kind, id=None)
    node(folder, 2**22 + 1, 1, code)  # no process has such a number
    status = read_status(run)
    assert status.state.word == word and told in status.state.reason
    assert status.following is not None
    assert status.following.startswith(f"foreframe submit {folder}/config.yaml --on {kind}")
    json.dumps(plain(status))


def test_a_job_that_lives_is_waited_for(tmp_path: Path) -> None:
    folder = submission(tmp_path / "tiny", "001", "ssh", id=None)
    node(folder, os.getpid(), start_time_of(os.getpid()) or 0)
    node(folder, 1, 1, code=0, number=1)
    assert read_status(tmp_path / "tiny").state.word == "submitted"


class Interrupted(LocalPlace):
    def start(self, job: Job, *, detach: bool) -> Any:
        raise KeyboardInterrupt


def test_what_was_interrupted_as_it_was_handed_over_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", name="one")
    job = Job("train", "one", config, next_folder(config), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        submit(job, Interrupted(), Asked(checks_data=False), lambda _: None)
    assert read_record(job.folder)["state"] == "not started: interrupted as it was handed over"


def test_sharding_has_a_block_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = DataConfig(name="films", sources=("clips",), out="data/films")
    made = freeze(Job("shard", "films", config, next_folder(config), tmp_path), LocalPlace())
    run, record = Path("jobs/films"), made.folder / "submission.json"

    def lies(state: str) -> None:
        record.write_text(json.dumps({**json.loads(record.read_text()), "state": state}))

    lies("dry run")
    shown = said(run)
    assert "train" not in shown and "damaged" not in shown and "loss" not in shown
    assert read_status(run).following == f"foreframe submit {run}/submissions/001/config.yaml --on local"
    lies("submitted")
    node(made.folder, os.getpid(), start_time_of(os.getpid()) or 0)
    assert read_status(run).state.word == "running"
    node(made.folder, 2**22 + 1, 1, code=0)
    assert read_status(run).state.word == "finished"
    assert read_status(run).following == "foreframe verify data/films"
    node(made.folder, 2**22 + 1, 1, code=6)
    assert read_status(run).state.word == "failed" and "exit code 6" in said(run)
    assert set(plain(read_status(run))) == set(plain(read_status(begun(tmp_path / "tiny", 0.0, {}))))
    assert table([read_status(run)]).row_count == 1


def test_folders_of_submissions_are_those_of_numbers_in_their_order(tmp_path: Path) -> None:
    for name in ("999", "1000", "001", "001-old", "002.bak", ".new-x"):
        (tmp_path / "submissions" / name).mkdir(parents=True)
    (tmp_path / "submissions" / "7").touch()
    assert [folder.name for folder in submission_folders(tmp_path)] == ["001", "999", "1000"]
    assert submission_folders(tmp_path / "nothing") == []


def test_what_is_typed_bears_a_folder_with_spaces(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "data", tmp_path / "my runs", name="one")
    job = Job("train", "one", config, next_folder(config), tmp_path)
    assert dict(told_of(job)) == {
        "watch": f"foreframe status '{job.run}' --watch",
        "log": f"tail -f '{job.logs}/node-0.log'",
        "stop": f"foreframe stop '{job.run}'",
    }
