"""Which ends are tried again, after how long, and what is told and kept of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from launch.attempts import Attempt, attempts_table, last_logged, newest_step, read_attempts, write_attempt
from launch.ending import End
from launch.supervise import Limits, end_of, what_next

ROOT = Path(__file__).parents[2]
LIMITS = Limits(max_failures=3, backoff_s=5.0)


def said(exit_code: int, kind: str, may_pass: bool) -> End:
    return End(exit_code, kind, "so it was", may_pass)


@pytest.mark.parametrize(
    ("status", "record", "is_restarted"),
    [
        (0, None, False),
        (2, None, False),
        (2, said(2, "ConfigError", False), False),
        (3, said(3, "StorageError", True), True),
        (3, said(3, "WorkerError", True), True),
        (3, said(3, "DataError", False), False),
        (4, said(4, "CheckpointError", False), False),
        (5, said(5, "DivergedError", False), False),
        (6, said(6, "LostPeerError", True), True),
        (75, said(75, "PreemptedError", True), True),
        (75, said(75, "stopped", False), False),  # train.time_limit_s
        (1, None, True),
        (3, None, False),
        (-signal.SIGKILL, None, True),
        (-signal.SIGSEGV, None, True),
        (-signal.SIGBUS, None, True),
        (3, said(2, "ConfigError", False), False),  # a record that does not fit is not believed
        (130, None, False),
    ],
)
def test_what_the_world_did_is_tried_again(status: int, record: End | None, is_restarted: bool) -> None:
    end = end_of(status, record)
    then = what_next(end, failures=1, limits=LIMITS, asked=None)
    assert (then.pause_s is not None) == is_restarted
    assert then.exit_code == (6 if status < 0 else status)


def test_pauses_double_up_to_five_minutes_and_begin_anew_after_progress() -> None:
    pauses = [LIMITS.pause_s(failures) for failures in range(9)]
    assert pauses == [5, 5, 10, 20, 40, 80, 160, 300, 300]


def test_it_gives_up_after_as_many_failures_without_progress() -> None:
    lost = said(6, "LostPeerError", True)
    assert [what_next(lost, failures=n, limits=LIMITS, asked=None).pause_s is None for n in (0, 1, 2, 3)] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("code", "ends_with"), [(75, 75), (6, 75), (1, 75), (0, 0), (4, 4)])
def test_asked_to_stop_it_starts_nothing_again(code: int, ends_with: int) -> None:
    then = what_next(said(code, "any", True), failures=1, limits=LIMITS, asked="SIGTERM")
    assert (then.pause_s, then.exit_code) == (None, ends_with)


ATTEMPT = Attempt(
    attempt=1,
    node=0,
    began="2026-01-02T03:04:05+00:00",
    seconds=12.0,
    from_step=0,
    to_step=8,
    reached=11,
    exit_code=6,
    signal=None,
    kind="LostPeerError",
    sentence="rank 1 was killed by SIGKILL; `foreframe train runs/x`, at any --nproc, goes on from step-8",
    next="restarted after 5 s",
)


def test_the_account_is_a_line_an_attempt_and_survives_a_torn_one(tmp_path: Path) -> None:
    write_attempt(tmp_path, ATTEMPT)
    with (tmp_path / "restarts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "no\n')
    second = replace(
        ATTEMPT, attempt=3, exit_code=0, sentence="", next="done", began="2026-01-02T03:05:00+00:00"
    )
    write_attempt(tmp_path, second)
    assert read_attempts(tmp_path) == [ATTEMPT, second]
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(attempts_table(tmp_path, read_attempts(tmp_path)))
    text = console.export_text()
    assert "0 → 11" in text
    assert "rank 1 was killed by SIGKILL" in text
    assert "goes on from" not in text


def test_steps_are_read_from_what_is_whole(tmp_path: Path) -> None:
    assert (newest_step(tmp_path), last_logged(tmp_path)) == (0, 0)
    for name in ("step-00000004", "step-00000008", "step-00000012.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").touch()
    (tmp_path / "checkpoints" / "step-00000012.part" / "manifest.json").touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6, "loss": 1}\n{"step": 7, "lo')
    assert (newest_step(tmp_path), last_logged(tmp_path)) == (4, 6)


# A command in place of `foreframe train`, which does in each attempt what a line of a script says.
PROGRAM = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run, told = Path(sys.argv[1]), os.environ["FOREFRAME_END_FILE"]
(run / "config.yaml").touch()
count = len(list(run.glob("begun-*")))
(run / f"begun-{count}").write_text(str(os.getpid()))
what = json.loads(sys.argv[2])[count]
def leave(code, kind, may_pass):
    Path(told).write_text(json.dumps(
        {"exit_code": code, "kind": kind, "sentence": f"{kind} happened", "may_pass": may_pass}))
    sys.exit(code)
if what == "stray":  # a child in a session of its own, that ignores SIGTERM
    code = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    (run / "stray").write_text(str(child.pid))
    leave(6, "LostPeerError", True)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: leave(75, "PreemptedError", True))
    (run / "waits").touch()
    time.sleep(600)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "waits").touch()
    time.sleep(600)
if what.startswith("step"):
    folder = run / "checkpoints" / f"step-{int(what[4:]):08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    leave(6, "LostPeerError", True)
if what == "done":
    sys.exit(0)
leave(*{"lost": (6, "LostPeerError", True), "config": (2, "ConfigError", False)}[what])
"""
SUPERVISE = """
import sys
from pathlib import Path
from launch.lock import lock_run
from launch.supervise import Limits, Supervisor
run = Path(sys.argv[1])
command = [sys.executable, "-c", sys.argv[2], str(run), sys.argv[3]]
limits = Limits(max_failures=int(sys.argv[4]), backoff_s=float(sys.argv[5]), grace_s=2.0)
from data_pipeline.errors import ForeframeError
try:
    sys.exit(Supervisor(run, command, limits, lambda text: print(text, flush=True)).supervise())
except ForeframeError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(
    run: Path, script: list[str], max_failures: int = 3, backoff_s: float = 0.05
) -> subprocess.Popen[str]:
    run.mkdir(exist_ok=True)
    given = [str(run), PROGRAM, json.dumps(script), str(max_failures), str(backoff_s)]
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, *given],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kinds(run: Path) -> list[str]:
    return [attempt.kind for attempt in read_attempts(run)]


@pytest.mark.parametrize(
    ("script", "exit_code", "seen"),
    [
        (["lost", "kill", "done"], 0, ["LostPeerError", "killed", "done"]),
        (["lost", "config"], 2, ["LostPeerError", "ConfigError"]),
        (["kill", "lost", "lost"], 6, ["killed", "LostPeerError", "LostPeerError"]),
        (["lost", "lost", "step4", "lost", "lost", "done"], 0, [*["LostPeerError"] * 5, "done"]),
        (["step4", "lost", "step2", "lost"], 6, ["LostPeerError"] * 4),  # an older step is no progress
    ],
    ids=["mended", "config", "lost for good", "progress counts anew", "an older step is no progress"],
)
def test_restarts_follow_the_ends_and_the_checkpoints(
    tmp_path: Path, script: list[str], exit_code: int, seen: list[str]
) -> None:
    process = start(tmp_path, script)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == exit_code, printed
    assert kinds(tmp_path) == seen
    assert "Traceback" not in printed
    if exit_code == 6:
        assert "gave up: 3 failures in a row" in printed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="adopts orphans on Linux only")
def test_what_a_command_leaves_behind_in_another_session_is_ended_before_the_next(tmp_path: Path) -> None:
    process = start(tmp_path, ["stray", "done"])
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    assert not psutil.pid_exists(int((tmp_path / "stray").read_text()))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("script", "kind"), [(["wait"], "PreemptedError"), (["deaf"], "killed")])
def test_a_stop_is_forwarded_and_ends_with_75(tmp_path: Path, script: list[str], kind: str) -> None:
    """Also when the command does not end within --grace-s."""
    process = start(tmp_path, script)
    wait_for(tmp_path / "waits")
    process.terminate()
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 75, printed
    assert kinds(tmp_path) == [kind]
    assert len(list(tmp_path.glob("begun-*"))) == 1


def test_a_stop_between_two_attempts_starts_nothing_again(tmp_path: Path) -> None:
    process = start(tmp_path, ["lost", "done"], backoff_s=300.0)
    wait_for(tmp_path / "restarts.jsonl")
    process.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 75, printed
    assert "not started again" in printed


def test_a_second_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, ["deaf"])
    wait_for(tmp_path / "waits")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not psutil.pid_exists(int((tmp_path / "begun-0").read_text()))
