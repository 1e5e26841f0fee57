"""Benchmarks that fail, hang or are not there cost themselves only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import checkpoint, contenders, ema, micro_batch
from benchmarks.cpu import parts_of as cpu_parts
from benchmarks.gpu import parts_of as gpu_parts
from benchmarks.measuring import GLANCED_S, Quiet
from benchmarks.running import Part, rows_of, run_part, run_parts, table
from launch.processes import facts_of

ROWS = [{"case": "a", "metric": "speed", "unit": "1/s", "ours": 2.0, "reference": 1.0, "ratio": 2.0}]
GOOD = f"import json; print('words'); print(json.dumps({{'rows': {ROWS}}}, indent=1)); print('more')"
GOOD = GOOD.replace("null", "None")


def test_what_is_done_stays_when_others_fail_hang_or_are_not_there(tmp_path: Path) -> None:
    file, pid = tmp_path / "all.json", tmp_path / "pid"
    hangs = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    parts = [
        Part("good", ["-c", GOOD], 20),
        Part("fails", ["-c", "raise SystemExit('out of luck')"], 20),
        Part("hangs", ["-c", hangs], 1.5),
        Part("absent", ["-c", GOOD], 20, needs=tmp_path / "nowhere.py"),
        Part("last", ["-c", GOOD], 20),
    ]
    found = run_parts(parts, file, 60, sys.executable, {"device": "a machine"})
    assert [part["ended"] for part in found["parts"]] == ["done", "failed", "out of time", "left out", "done"]
    assert [part["rows"] for part in found["parts"]] == [ROWS, [], [], [], ROWS]
    assert json.loads(file.read_text()) == found
    text = table(found)
    assert "out of luck" in text
    assert "nowhere.py is not there" in text
    facts = facts_of(int(pid.read_text()))
    assert facts is None or facts.state == "Z"  # what it had started is gone too


def test_what_is_done_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    reads = f"import json; assert json.load(open({str(file)!r}))['parts'][0]['name'] == 'one'"
    parts = [Part("one", ["-c", "pass"], 20), Part("two", ["-c", reads], 20)]
    found = run_parts(parts, file, 60, sys.executable, {})
    assert [part["ended"] for part in found["parts"]] == ["done", "done"]


def test_no_part_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    times = iter(range(0, 1000, 100))
    parts = [Part("one", ["-c", "pass"], 20), Part("two", ["-c", "pass"], 20)]
    found = run_parts(parts, tmp_path / "all.json", 150, sys.executable, {}, clock=lambda: float(next(times)))
    assert [part["ended"] for part in found["parts"]] == ["done", "left out"]
    assert found["parts"][1]["why"] == "no time was left"


def test_rows_are_found_in_what_is_printed_and_in_files_that_are_named(tmp_path: Path) -> None:
    more = [*ROWS, ROWS[0] | {"metric": "size"}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": more}))
    printed = f"{{not json\n{json.dumps({'rows': ROWS})}\nwrote {tmp_path / 'x.json'}\n"
    assert rows_of(printed) == more, "what was kept case by case comes again in the file"
    assert rows_of("{}\nwrote /nowhere.json") == []


def test_rows_that_were_kept_outlive_a_part_that_ran_out_of_time() -> None:
    words = f"import time; from benchmarks.measuring import keep; keep({ROWS}); time.sleep(600)"
    found = run_part(Part("slow", ["-c", words], 4), sys.executable, 60)
    assert (found["ended"], found["rows"]) == ("out of time", ROWS)


def test_what_is_measured_on_a_gpu_is_a_run_that_may_be_trained() -> None:
    """Settings that do not go together are not refused by the engine: half of it would be in bf16."""
    device = torch.device("cuda")
    configs = [contenders.config_of(shape) for shape in contenders.CASES["cuda"].values()]
    configs += [ema.config_of(ema.CUDA_CASE, device, 1)]
    configs += [checkpoint.config_of(checkpoint.CUDA_CASE, device, in_background=True)]
    presets = [(preset, again) for preset, again in micro_batch.CASES["cuda"].values()]
    configs += [micro_batch.run_of(preset, 4, "cuda", again=again) for preset, again in presets]
    assert [config.problems() for config in configs] == [[]] * len(configs)


def test_nobody_waits_for_a_quiet_machine_who_was_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("benchmarks.measuring.time.sleep", slept.append)
    Quiet(0.0).wait()
    assert slept == [GLANCED_S]


@pytest.mark.parametrize("parts", [gpu_parts(["vjepa2=/x"], "cpu"), cpu_parts([], Path("data"))])
def test_parts_have_names_of_their_own_and_limits(parts: list[Part]) -> None:
    assert len({part.name for part in parts}) == len(parts)
    assert all(0 < part.limit_s <= 240 for part in parts)


def test_a_part_that_cannot_be_started_at_all_is_one_that_failed() -> None:
    found = run_part(Part("module", ["-m", "benchmarks.no_such_thing"], 20), sys.executable, 60)
    assert found["ended"] == "failed"
    assert "no_such_thing" in found["said"]
