"""`foreframe status`: every state a run can be in, damaged files, and that it only reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_pipeline.errors import UsageError
from launch.attempts import Attempt, write_attempt
from launch.cli import app
from launch.config import dump_config
from launch.lock import lock_run
from launch.run_state import read_lock
from launch.status import Status, block, plain, read_all, read_status
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]
STEPS = 200
RESULT = {"step": STEPS, "loss": 0.5, "clips_per_s": 4.0, "seconds": 9.0, "stopped": None, "bad_samples": 0}


def make_run(folder: Path, name: str = "tiny") -> Path:
    """A run of 200 steps that has logged 100, with checkpoints at 50 and 100, and died without a word."""
    config = tiny_config(folder / "data", folder, name=name, train={"steps": STEPS, "keep_best": "shape"})
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    for step in range(10, 101, 10):
        values: dict[str, Any] = {"loss": 1 / step, "perf/clips_per_s": 4.0, "time_s": step / 2.0}
        values |= {"optim/lr": 1e-3, "system/host_memory_bytes": 2e9, "system/loader_memory_bytes": 1e9}
        if step % 50 == 0:
            values |= {"verdict": "warning", "verdict_reason": f"seen at {step}"}
        add(run, "metrics.jsonl", {"step": step, **values})
    for step in (50, 100):
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step:08d}" / "manifest.json").write_text("{}")
        score = 0.9 if step == 50 else 0.8
        add(run, "probes.jsonl", {"step": step, "scores": {"shape": score}, "untrained": {"shape": 0.3}})
    (run / ".lock").write_text(f"4000000 {socket.gethostname()}")
    return run


def add(run: Path, name: str, line: dict[str, Any]) -> None:
    with (run / name).open("a") as file:
        file.write(json.dumps(line) + "\n")


def put(name: str, plain: Any) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(json.dumps(plain)) and None


def attempt(run: Path) -> None:
    told = "rank 1 was killed; `foreframe train x` goes on"
    began = "2026-01-02T03:04:05+00:00"
    write_attempt(
        run, Attempt(1, 0, began, 9.0, 0, 50, 60, 6, None, "LostPeerError", told, "gave up after 3")
    )


STATES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "killed": (lambda run: None, "failed", "without a word"),
    "done": (put("result.json", RESULT), "finished", ""),
    "asked": (put("result.json", RESULT | {"stopped": "SIGTERM received"}), "preempted", "SIGTERM"),
    "Ctrl-C": (put("result.json", RESULT | {"stopped": "SIGINT received"}), "stopped", "SIGINT"),
    "late": (put("result.json", RESULT | {"stopped": "train.time_limit_s is over"}), "stopped", "time_limit"),
    "told": (
        put("failure.json", {"kind": "CollapsedError", "sentence": "it collapsed"}),
        "failed",
        "it collapsed",
    ),
    "unsaved": (
        put("failure.json", {"kind": "PreemptedError", "sentence": "SIGTERM"}),
        "preempted",
        "SIGTERM",
    ),
    "supervised": (attempt, "failed", "rank 1 was killed"),
    "collapsed": (
        put("failure.json", {"kind": "CollapsedError", "sentence": "no spread", "exit_code": 5}),
        "failed",
        "no spread",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_how_a_run_ended_is_told_with_what_says_so(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    happens, word, reason = STATES[name]
    happens(run)
    status = read_status(run)
    assert status.state.word == word
    assert reason in status.state.reason and "foreframe" not in status.state.reason
    assert status.state.known_by
    following = "report" if word == "finished" or name == "collapsed" else "train"
    assert status.following == f"foreframe {following} {run}"
    assert status.figures.left_s is None, "nothing is left to wait for"
    (run / "probes.jsonl").unlink()
    following = {"done": "probe", "collapsed": "report"}.get(name, "train")
    assert read_status(run).following == f"foreframe {following} {run}"


def test_a_held_lock_is_a_running_run_until_nothing_is_written_for_too_long(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "result.json").write_text(json.dumps(RESULT))  # of before
    with lock_run(run):
        status = read_status(run)
        assert (status.state.word, status.state.pid) == ("running", os.getpid())
        assert f"process {os.getpid()}" in status.state.known_by
        assert status.figures.left_s == pytest.approx(50.0)
        hung = read_status(run, now_s=time.time() + 901)
        assert hung.state.word == "hung" and "15 min" in hung.state.reason
        assert hung.following is not None and hung.following.startswith(f"kill -TERM {os.getpid()}")
        assert status.following is None, "a run that trains needs nothing"
    assert read_status(run).state.word == "finished"


def test_a_supervisor_between_two_attempts_is_a_running_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with lock_run(run, ".lock-supervise-00000", "supervised"):
        state = read_status(run).state
    assert (state.word, state.reason) == ("running", "between two attempts")


def test_of_another_machine_s_process_the_last_sign_of_life_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / ".lock").write_text("31451 node-of-another-rack")
    state = read_status(run).state
    assert (state.word, state.host) == ("running", "node-of-another-rack")
    assert "node-of-another-rack" in state.known_by and "last sign of life 0 s ago" in state.known_by
    later = read_status(run, now_s=time.time() + 3600).state
    assert (later.word, later.seen_s) == ("silent", pytest.approx(3600, abs=60))
    (run / "result.json").write_text(json.dumps(RESULT))
    assert read_status(run).state.word == "finished"


def test_the_kernel_s_list_tells_who_holds_a_lock(tmp_path: Path) -> None:
    path, locks = tmp_path / ".lock", tmp_path / "locks"
    path.write_text("77 here")
    facts = path.stat()
    own = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    rows = {
        f"1: FLOCK  ADVISORY  WRITE 77 {own} 0 EOF": True,
        f"1: FLOCK  ADVISORY  WRITE 77 ff:ff:{facts.st_ino} 0 EOF": True,  # as btrfs says it
        f"1: FLOCK  ADVISORY  WRITE 78 ff:ff:{facts.st_ino} 0 EOF": False,
        f"1: -> FLOCK  ADVISORY  WRITE 77 {own} 0 EOF": False,  # it waits
        f"1: FLOCK  ADVISORY  READ 77 {own} 0 EOF": False,
        "": False,
    }
    for row, is_held in rows.items():
        locks.write_text(row)
        assert read_lock(path, locks).is_held is is_held, row
    assert read_lock(path, tmp_path / "none").is_held is None
    assert read_lock(tmp_path / "no lock").is_held is False


def test_figures_checkpoints_and_probes_are_those_of_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add(run, "metrics.jsonl", {"step": 100, "probe/trained/shape": 0.8})  # a later line of the same step
    (run / "mlflow_run.json").write_text(
        json.dumps({"run_id": "r", "experiment_id": "7", "address": "http://server:5000/"})
    )
    found = plain(read_status(run))
    assert (found["step"], found["steps"], found["clips_per_s"]) == (100, STEPS, 4.0)
    assert found["loss"] == 1 / 100, "the last tenth of the steps is one line"
    assert found["host_memory_bytes"] == 3e9
    assert (found["verdict"], found["verdict_reason"], found["verdict_step"]) == (
        "warning",
        "seen at 100",
        100,
    )
    assert found["checkpoints"]["count"] == 2 and found["checkpoints"]["newest"]["step"] == 100
    assert found["checkpoints"]["best"] == {"step": 50, "score": "shape", "value": 0.9}
    assert found["probe"] == {"step": 100, "scores": {"shape": 0.8}, "untrained": {"shape": 0.3}}
    assert found["mlflow"] == "http://server:5000/#/experiments/7/runs/r"
    text = "\n".join(line.plain for line in block(read_status(run), 100))
    for words in ("failed", "100/200", "warning", "seen at 100", "best 50", "shape 0.80 (untrained 0.30)"):
        assert words in text, words


def test_what_was_done_about_its_health_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().replace("verdict", "other")  # no look among the last lines
    (run / "metrics.jsonl").write_text(lines)
    add(run, "health.jsonl", {"step": 60, "verdict": "warning", "reason": "it falls", "response": "warned"})
    back = {"step": 90, "verdict": "collapsing", "reason": "it is gone", "response": "rolled back"}
    add(
        run,
        "health.jsonl",
        back
        | {
            "to_step": 50,
            "changes": {"lr_scale": 0.5, "momentum": None, "rollbacks": 1},
            "time": "2026-01-02T03:04:05+00:00",
        },
    )
    status = read_status(run)
    assert status.verdict == ("collapsing", "it is gone") and status.verdict_step == 90
    text = "\n".join(line.plain for line in block(status, 100))
    assert "rolled back at step 90 to step 50, learning rate × 0.5\n" in text
    assert text.count("it is gone") == 1, "as the reason of the verdict"
    assert [each["response"] for each in plain(status)["responses"]] == ["warned", "rolled back"]


DAMAGES = {
    "bytes": b"\xff\xfe\x00garbage\x00\n\x80\x81",
    "half": b'{"step": 100, "lo',
    "a list": b"[1, 2, 3]\n[4]\n",
    "null": b"null\nnull\n",
    "empty": b"",
    "of other types": b'{"step": "x", "stopped": [], "scores": 3, "rows": 7, "address": {}}\n{"step": {}}\n',
    "deep": b"[" * 100_000 + b"\n",
    "huge": b'{"step": 1, "loss": 1e999, "perf/clips_per_s": '
    + b"9" * 500
    + b', "scores": {"a": 1e999}}\n\n',
}
FILES = (
    "config.yaml", "metrics.jsonl", "probes.jsonl", "health.jsonl", "restarts.jsonl", "result.json",
    "failure.json", "provenance.json", "mlflow_run.json", "probe.json", ".lock", "checkpoints",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_and_nothing_else_is_lost(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    if name == "checkpoints":
        (run / name).rename(run / "away")
    for kind, data in DAMAGES.items():
        (run / name).write_bytes(data)
        status = read_status(run)
        json.dumps(plain(status), allow_nan=False)
        assert all(line.cell_len < 60 for line in block(status, 60))
        if name != "metrics.jsonl":
            assert status.figures.step == 100, kind
        is_plain = name in ("config.yaml", "result.json", "failure.json", "mlflow_run.json")
        if is_plain and kind in ("bytes", "half", "a list", "deep"):
            assert any(name in trouble for trouble in status.folder.troubles), kind


def test_a_torn_last_line_is_no_damage_and_one_in_the_middle_is(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "lo')
    assert read_status(run).folder.troubles == ()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 120, "perf/clips_per_s": 5.0}\n')
    status = read_status(run)
    assert status.folder.troubles == ("metrics.jsonl: a line cannot be read",)
    assert status.figures.step == 120


def test_it_writes_nothing_and_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
    monkeypatch.setattr("fcntl.flock", lambda *_: pytest.fail("took a lock"))
    monkeypatch.setattr("fcntl.lockf", lambda *_: pytest.fail("took a lock"))
    result = CliRunner().invoke(app, ["status", str(run)])
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before


def test_several_runs_are_a_table_and_json_is_an_object_a_line(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("one", "two")]
    (runs[0] / "result.json").write_text(json.dumps(RESULT))
    given = ["status", *map(str, runs)]
    printed = CliRunner().invoke(app, given).output.splitlines()
    assert [sum(word in line for line in printed) for word in ("finished", "failed", "100/200")] == [1, 1, 2]
    found = [json.loads(line) for line in CliRunner().invoke(app, [*given, "--json"]).stdout.splitlines()]
    assert [each["state"] for each in found] == ["finished", "failed"]
    assert found[0].keys() == found[1].keys()


def test_a_folder_of_an_experiment_or_a_sweep_is_all_its_runs(tmp_path: Path) -> None:
    for stage, arms in {"encoders": ("latent", "pixel"), "predictors": ("latent",)}.items():
        for arm in arms:
            run = make_run(tmp_path / "try" / stage, arm)
            config = yaml.safe_load((run / "config.yaml").read_text())
            config.setdefault("tracker", {})["run_name"] = f"{arm}, seed 0"
            (run / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "try" / stage / "sweep.json").write_text("{}")
    (tmp_path / "try/result.json").write_text("{}")  # of the experiment, and no run's
    told = {"encoders: latent, seed 0", "encoders: pixel, seed 0", "predictors: latent, seed 0"}
    assert {each.called for each in read_all([tmp_path / "try"])[0]} == told
    assert len(read_all([tmp_path / "try/encoders"])[0]) == 2
    (one,) = read_all([tmp_path / "try/predictors"])[0]
    assert one.run == tmp_path / "try/predictors/latent"


def test_folders_among_several_that_are_no_runs_are_left_out_and_told(tmp_path: Path) -> None:
    """As `runs/*` gives them after a demo."""
    make_run(tmp_path / "demo", "run")
    given = ["status", str(tmp_path / "demo"), str(make_run(tmp_path, "one")), str(tmp_path / "none")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert sum("100/200" in line for line in result.output.splitlines()) == 1
    assert result.output.count("left out: ") == 2 and "demo/run" in result.output
    lines = CliRunner().invoke(app, [*given, "--json"]).stdout.splitlines()
    assert [Path(json.loads(line)["run"]).name for line in lines] == ["one"]
    nothing = CliRunner().invoke(app, ["status", str(tmp_path / "demo"), str(tmp_path / "none")])
    assert isinstance(nothing.exception, UsageError) and "none does not exist" in str(nothing.exception)


def test_no_run_is_an_error_that_names_one(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    for given, hint in ((tmp_path / "none", "does not exist"), (tmp_path / "demo", "did you mean")):
        result = CliRunner().invoke(app, ["status", str(given)])
        assert isinstance(result.exception, UsageError) and result.exception.exit_code == 2
        assert hint in str(result.exception)


def wait_for(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 90
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline_s, "it ended, or took too long"
        time.sleep(0.05)


def test_a_real_run_while_it_trains_stopped_and_killed(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 50_000, "checkpoint_every": 50_000})
    (tmp_path / "given.yaml").write_text(dump_config(config))
    run = tmp_path / "tiny"

    def status() -> Status:
        return read_status(run)

    for number, word in ((signal.SIGTERM, "preempted"), (signal.SIGKILL, "failed")):
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "train", str(tmp_path / "given.yaml"), "--quiet"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        begun = status().figures.step if run.exists() else 0
        wait_for(lambda begun=begun: run.exists() and status().figures.step > begun + 3, process)
        found = status()
        assert (found.state.word, found.state.pid) == ("running", process.pid)
        assert found.figures.left_s is not None and found.figures.host_memory_bytes is not None
        process.send_signal(number)
        process.wait(60)
        assert status().state.word == word
    assert status().figures.step > 0 and len(status().folder.saved) == 1
    assert "without a word" in status().state.reason


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = (
        "import sys; from launch.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "status", str(run), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0 and ended.stderr.strip() == "False"
