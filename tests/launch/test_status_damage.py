"""`foreframe status` of folders whose files are damaged, endless, or meant to act on the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch.attempts import last_logged
from launch.status import block, plain, read_status, show
from tests.damage import DAMAGES, FILES, KEYS, NUMBERS, in_time, with_value
from tests.launch.test_status import add, attempt, make_run

EVIL = "\x1b[31m\x1b]0;title\x07\x9b2Jred\ud800"
LINES = ("metrics.jsonl", "health.jsonl", "probes.jsonl")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_sentence_and_the_rest_is_shown(damage: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in FILES:
        file = run / name
        before = file.read_bytes() if file.exists() else None
        DAMAGES[damage](file)
        with in_time():
            found = read_status(run)
            last_logged(run)
        assert json.loads(json.dumps(plain(found)))["state"] == "failed"
        assert block(found, 80)
        if name == "config.yaml" or (name in LINES and damage in ("folder", "pipe", "long")):
            assert any(name in trouble for trouble in found.folder.troubles)
        assert found.figures.step == (0 if name == "metrics.jsonl" else 100)
        assert found.steps == (None if name == "config.yaml" else 200)
        file.rmdir() if file.is_dir() else file.unlink()
        if before is not None:
            file.write_bytes(before)


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_that_cannot_be_are_left_out(value: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for number in range(11, 31):  # enough lines that a trend is reckoned
        add(run, "metrics.jsonl", {"step": 10 * number, "loss": 0.5, "perf/clips_per_s": 4.0})
    whole = (run / "metrics.jsonl").read_bytes()
    for key in KEYS:
        (run / "metrics.jsonl").write_bytes(whole)
        with_value(run / "metrics.jsonl", key, value)
        found = read_status(run)
        json.dumps(plain(found), allow_nan=False)
        assert block(found, 80)
        assert found.figures.loss is None or key != "loss"
        assert (found.figures.step == 0) == (key == "step")


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_of_a_file_acts_on_the_terminal(count: int, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    line = {"step": 110, "perf/clips_per_s": 4.0, "verdict": f"warning{EVIL}", "verdict_reason": f"why{EVIL}"}
    add(run, "metrics.jsonl", line)
    (run / "failure.json").write_text(json.dumps({"kind": "x", "sentence": f"it{EVIL} fell"}))
    record = {"address": f"http://host{EVIL}:5000", "run_id": EVIL, "experiment_id": "1"}
    (run / "mlflow_run.json").write_text(json.dumps(record))
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=True, color_system=None, width=120)
    show([run] * count, as_json=False, watch=False, console=console)
    said = sink.getvalue()
    assert "red" in said
    assert not {"\x9b", "\x07", "\ud800"} & set(said)
    assert "\x1b[31m" not in said
    assert "\x1b]0" not in said


@pytest.mark.parametrize("value", [NUMBERS[0], "null", "{}"])
def test_an_attempt_with_a_value_of_another_kind_is_left_out(value: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run)
    whole = (run / "restarts.jsonl").read_text()
    for key in json.loads(whole):
        (run / "restarts.jsonl").write_text(whole)
        with_value(run / "restarts.jsonl", key, value)
        (run / "restarts.jsonl").write_text((run / "restarts.jsonl").read_text() + whole)
        found = read_status(run)
        json.dumps(plain(found), allow_nan=False)
        assert block(found, 80)
        assert found.folder.attempts
