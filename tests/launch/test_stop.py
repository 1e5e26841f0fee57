"""`foreframe stop`: of jobs on this machine, of clusters by their own command, and what cannot be stopped."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from launch.submit.base import Job
from launch.submit.freeze import freeze, next_folder, update_record
from launch.submit.local import LocalPlace
from launch.submit.node_process import exit_code, start
from launch.submit.stop import stop
from tests.small_dataset import tiny_config

PATIENT = "trap 'exit 75' TERM; touch started; while :; do sleep 0.05; done"
SOON_S = 60.0


def submission(run: Path, number: int, kind: str, state: str, told: Mapping[str, str] | None = None) -> Path:
    folder = run / "submissions" / f"{number:03d}"
    (folder / "logs").mkdir(parents=True)
    record = {"place": {"kind": kind}, "state": state, "told": dict(told or {})}
    (folder / "submission.json").write_text(json.dumps(record))
    return folder


def started(folder: Path, tmp_path: Path, host: str) -> Path:
    logs = folder / "logs"
    start(logs, 0, ["/bin/sh", "-c", f"cd {tmp_path}; {PATIENT}"], host)
    deadline_s = time.monotonic() + SOON_S
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return logs


def test_the_newest_that_runs_is_asked_and_waited_for(tmp_path: Path) -> None:
    run, host, said = tmp_path / "run", socket.gethostname(), list[str]()
    logs = started(submission(run, 1, "local", "submitted"), tmp_path, host)
    submission(run, 2, "local", "not started: no room")
    submission(run, 3, "slurm", "dry run")
    refused = submission(run, 4, "local", "submitted") / "logs"
    (refused / "node-0.pid").write_text(f"{host} 1 1\n")
    (refused / "node-0.exit").write_text("2\n")
    stop(run, said.append, waits=True)
    assert said == [f"node 0 on {host} is asked to save and stop", "all has ended"]
    assert exit_code(logs, 0) == 75
    stop(run / "submissions" / "001", said.append)
    assert said[2:] == [f"node 0 on {host} has ended with exit code 75"]


def test_a_detached_job_of_this_machine_is_found_by_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", name="one")
    job = freeze(Job("train", "one", config, next_folder(config), tmp_path), LocalPlace())
    (job.folder / "job.sh").write_text(PATIENT)
    told = LocalPlace().start(job, detach=True).told
    update_record(job.folder, state="submitted")
    assert told == (
        ("watch", f"foreframe status {job.run} --watch"),
        ("log", f"tail -f {job.logs}/node-0.log"),
        ("stop", f"foreframe stop {job.run}"),
    )
    deadline_s = time.monotonic() + SOON_S
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    stop(job.run, lambda _: None, waits=True)
    assert exit_code(job.logs, 0) == 75


def test_at_once_it_does_not_wait_for_a_save(tmp_path: Path) -> None:
    run, host, said = tmp_path / "run", socket.gethostname(), list[str]()
    started(submission(run, 1, "local", "submitted"), tmp_path, host)
    stop(run, said.append, now=True)
    assert said[0].startswith(f"node 0 on {host} has ended with exit code 1")  # 130, of an interrupt


def test_a_job_of_another_machine_is_left_to_it(tmp_path: Path) -> None:
    folder = submission(tmp_path / "run", 1, "local", "submitted")
    (folder / "logs" / "node-0.pid").write_text("another-machine 1 1\n")
    with pytest.raises(UsageError, match="runs on another-machine, and this is"):
        stop(tmp_path / "run", lambda _: None)


@pytest.fixture
def scancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program of a cluster, which writes down what it is called with."""
    program = tmp_path / "bin" / "scancel"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\n[ "$1" = 17 ] || { echo no such job; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def test_a_job_of_a_cluster_is_stopped_by_its_own_command(tmp_path: Path, scancel: Path) -> None:
    said: list[str] = []
    submission(tmp_path / "run", 1, "slurm", "submitted", {"stop": "scancel 17"})
    stop(tmp_path / "run", said.append)
    assert said == ["scancel 17"]
    assert Path(f"{scancel}.calls").read_text() == "17\n"
    submission(tmp_path / "run", 2, "slurm", "submitted", {"stop": "scancel 18"})
    with pytest.raises(UsageError, match="`scancel 18` failed: no such job"):
        stop(tmp_path / "run", said.append)


@pytest.mark.parametrize(
    ("kind", "told", "sentence"),
    [
        ("kubernetes", {"stop": "kubectl delete trainjob one"}, "kubectl is not on PATH here; where it is"),
        ("slurm", {"stop": "rm -rf /tmp/nothing"}, "rm is no cluster's program, and is not run"),
        ("slurm", {}, "does not say how it is stopped"),
        ("local", {}, "left no word of its process"),
        ("ssh", {}, "was started on no host"),
    ],
)
def test_what_cannot_be_stopped_from_here_is_told(
    tmp_path: Path, scancel: Path, kind: str, told: dict[str, str], sentence: str
) -> None:
    submission(tmp_path / "run", 1, kind, "submitted", told)
    with pytest.raises(UsageError) as raised:
        stop(tmp_path / "run", lambda _: None)
    assert sentence in str(raised.value)


def test_what_was_never_started_has_nothing_to_stop(tmp_path: Path) -> None:
    submission(tmp_path / "run", 1, "slurm", "dry run")
    with pytest.raises(UsageError, match="there is nothing to stop"):
        stop(tmp_path / "run", lambda _: None)
    with pytest.raises(UsageError, match="is no run that was submitted"):
        stop(tmp_path / "nothing", lambda _: None)
