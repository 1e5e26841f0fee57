"""Benchmarks that fail, hang or are not there cost themselves only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import checkpoint, contenders, ema, micro_batch, running
from benchmarks.cpu import parts_of as cpu_parts
from benchmarks.measuring import GLANCE_S, Quiet, so_far
from benchmarks.running import (
    Part,
    better,
    facts_of,
    kept,
    left_to_do,
    limit_of,
    rows_of,
    run_part,
    run_parts,
    table,
)
from launch.processes import facts_of as process_facts

ROWS = [{"case": "a", "metric": "speed", "unit": "1/s", "ours": 2.0, "reference": 1.0, "ratio": 2.0}]
GOOD = f"import json; print('words'); print(json.dumps({{'rows': {ROWS}}}, indent=1)); print('more')"
GOOD = GOOD.replace("null", "None")
OTHERS = [{"case": "b", "metric": "speed", "unit": "1/s", "ours": 3.0}]
FACTS: dict[str, Any] = {"benchmark": "all", "commit": "1", "code": "2", "device": "a machine"}


def prints(rows: list[dict[str, Any]]) -> list[str]:
    return ["-c", f"import json; print(json.dumps({{'rows': {rows}}}))"]


def test_what_is_done_stays_when_others_fail_hang_or_are_not_there(tmp_path: Path) -> None:
    file, pid = tmp_path / "all.json", tmp_path / "pid"
    hangs = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        f"start_new_session=True); "  # as torchrun starts ranks
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    parts = [
        Part("good", ["-c", GOOD], 20),
        Part("fails", ["-c", "raise SystemExit('out of luck')"], 20),
        Part("hangs", ["-c", hangs], 1.5),
        Part("absent", ["-c", GOOD], 20, needs=tmp_path / "nowhere.py"),
        Part("last", ["-c", GOOD], 20),
    ]
    found = run_parts(parts, file, 60, sys.executable, FACTS)
    assert [part["ended"] for part in found["parts"]] == ["done", "failed", "out of time", "left out", "done"]
    assert [part["rows"] for part in found["parts"]] == [ROWS, [], [], [], ROWS]
    assert json.loads(file.read_text()) == found
    text = table(found)
    assert "out of luck" in text
    assert "nowhere.py is not there" in text
    said = running.unfinished(parts, found)
    assert said.startswith("not whole: fails (code=1), hangs (ended after ")
    assert running.unfinished(parts[:1], found) == ""
    facts = process_facts(int(pid.read_text()))
    assert facts is None or facts.state == "Z"  # what it had started is gone too


def test_what_is_done_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    reads = f"import json; assert json.load(open({str(file)!r}))['parts'][0]['name'] == 'one'"
    parts = [Part("one", ["-c", "pass"], 20), Part("two", ["-c", reads], 20)]
    found = run_parts(parts, file, 60, sys.executable, FACTS)
    assert [part["ended"] for part in found["parts"]] == ["done", "done"]


def test_no_part_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    times = iter(range(0, 1000, 100))
    parts = [Part("one", ["-c", "pass"], 20), Part("two", ["-c", "pass"], 20)]
    found = run_parts(
        parts, tmp_path / "all.json", 150, sys.executable, FACTS, clock=lambda: float(next(times))
    )
    assert [part["ended"] for part in found["parts"]] == ["done", "left out"]
    assert found["parts"][1]["why"] == "no time was left"


def test_rows_are_found_in_what_is_printed_and_in_files_that_are_named(tmp_path: Path) -> None:
    more = [*ROWS, ROWS[0] | {"metric": "size"}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": more}))
    printed = f"{{not json\n{json.dumps({'rows': ROWS})}\nwrote {tmp_path / 'x.json'}\n"
    assert rows_of(printed) == more, "what was kept case by case comes again in the file"
    assert rows_of("{}\nwrote /nowhere.json") == []


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
    assert slept == [GLANCE_S]


def test_parts_have_names_of_their_own_and_limits() -> None:
    parts = cpu_parts([], Path("data"))
    assert len({part.name for part in parts}) == len(parts)
    assert all(0 < part.limit_s <= 240 for part in parts)


def test_rows_printed_on_the_way_stay_of_a_part_that_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    so_far(ROWS)
    first = capfd.readouterr().out
    so_far(ROWS + OTHERS)
    second = capfd.readouterr().out
    hangs = f"import time; print({first + second!r} + 'so far {{', flush=True); time.sleep(600)"
    found = run_part(Part("hangs", ["-c", hangs], 1.0), sys.executable, 1.0)
    assert (found["ended"], found["rows"]) == ("out of time", ROWS + OTHERS)
    ends = f"print({first!r}); print({json.dumps({'rows': OTHERS})!r})"
    assert run_part(Part("ends", ["-c", ends], 20), sys.executable, 20)["rows"] == OTHERS


def test_calls_add_up_in_one_file(tmp_path: Path) -> None:
    file, order = tmp_path / "all.json", ["one", "two", "three"]
    one, two = Part("one", prints(ROWS), 20), Part("two", prints(OTHERS), 20)
    run_parts([two], file, 60, sys.executable, FACTS, order)
    found = run_parts([one], file, 60, sys.executable, FACTS, order)
    assert json.loads(file.read_text()) == found
    assert [(part["name"], part["rows"]) for part in found["parts"]] == [("one", ROWS), ("two", OTHERS)]
    again = Part("two", prints(ROWS), 20)
    assert [each.name for each in left_to_do([one, two, Part("three", [], 9)], kept(file, FACTS))] == [
        "three"
    ]
    assert left_to_do([one, again], kept(file, FACTS)) == [again]  # it would be run with other words
    found = run_parts([again], file, 60, sys.executable, FACTS, order)
    assert [part["rows"] for part in found["parts"]] == [ROWS, ROWS]


@pytest.mark.parametrize("other", [{"commit": "other"}, {"code": "other"}, {"device": "other"}])
def test_what_other_code_or_another_device_measured_is_not_kept(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    file, part = tmp_path / "all.json", Part("one", prints(ROWS), 20)
    run_parts([part], file, 60, sys.executable, FACTS | other)
    assert kept(file, FACTS) == {}
    found = run_parts([Part("two", prints(OTHERS), 20)], file, 60, sys.executable, FACTS)
    assert [each["name"] for each in found["parts"]] == ["two"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": 3}'])
def test_a_file_that_is_not_whole_is_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "all.json"
    file.write_text(text)
    assert kept(file, FACTS) == {}


def test_a_later_call_that_measured_less_takes_nothing_away() -> None:
    done, rows = {"ended": "done", "rows": ROWS}, {"ended": "out of time", "rows": ROWS, "why": "late"}
    failed, left = {"ended": "failed", "rows": [], "why": "x"}, {"ended": "left out", "rows": [], "why": "y"}
    assert better(None, left) is left
    assert better(left, failed) is failed
    assert better(failed, rows) is rows
    assert better(rows, done) is done
    assert better(done, dict(done)) is not done  # the later of equals
    assert better(done, failed) == done | {"again": "failed: x"}
    assert better(failed, left) == failed | {"again": "left out: y"}
    assert better(done | {"again": "failed: x"}, done) is done  # measured after all


def test_time_that_is_left_goes_to_who_can_use_it_and_to_none_that_others_need() -> None:
    one, two, three = (Part(name, [], limit_s) for name, limit_s in (("1", 50), ("2", 30), ("3", 20)))
    assert limit_of(one, [two, three], 100) == 50
    assert limit_of(one, [two, three], 115) == 65
    assert limit_of(one, [two, three], 500) == 100  # twice its limit
    assert limit_of(two, [three], 40) == 30  # its own, also where too little was left for all
    assert limit_of(three, [], 7) == 7


def test_code_is_told_apart_from_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "__file__", str(tmp_path / "running.py"))
    (tmp_path / "step.py").write_text("a = 1\n")
    before = facts_of(tmp_path / "all.json", "a machine")
    assert facts_of(tmp_path / "all.json", "a machine") == before
    (tmp_path / "step.py").write_text("a = 2\n")
    assert facts_of(tmp_path / "all.json", "a machine")["code"] != before["code"]


def test_a_part_that_cannot_be_started_at_all_is_one_that_failed() -> None:
    found = run_part(Part("module", ["-m", "benchmarks.no_such_thing"], 20), sys.executable, 60)
    assert found["ended"] == "failed"
    assert "no_such_thing" in found["said"]


def test_a_record_does_not_tell_where_things_lie() -> None:
    words = ["-m", "benchmarks.x", "/home/me/data", "--peer", "theirs=/srv/code/theirs", "--case", "8 frames"]
    assert Part("x", words, 1.0).command == "-m benchmarks.x data --peer theirs=theirs --case 8 frames"


def test_the_table_cuts_no_name_and_tells_what_a_ratio_is() -> None:
    case = "a case whose name is longer than what a terminal of eighty columns has room for, as they are"
    rows = [
        {"case": case, "metric": "sdpa: calls", "unit": "1/s", "ours": 8137.0, "reference": 8137.0}
        | {"reference_name": "sdpa", "ratio": 1.0},
        {"case": case, "metric": "share", "unit": "1", "ours": 0.00044941},
        {"case": case, "metric": "steps", "unit": "1/s", "ours": 2.594, "reference": 2.602}
        | {"reference_name": "no tracker", "ratio": 1.079},
        {"case": case, "metric": "parameters", "unit": "", "ours": 27080000.0},
    ]
    text = table({"parts": [{"name": "one", "ended": "done", "rows": rows}]})
    assert text.count(case) == 1
    assert "    sdpa: calls: 8,137 1/s\n" in text, "not beside itself"
    assert "    share: 0.0004494\n" in text
    assert "    steps: 2.594 1/s (no tracker 2.602; 1.079 times)\n" in text
    assert "    parameters: 27,080,000\n" in text
    assert text.endswith(running.TIMES)


@pytest.mark.parametrize(("load", "factor"), [(0.0, 1.0), (0.1, 1.0), (0.5, 2.0), (0.9, 3.0), (1.0, 3.0)])
def test_limits_are_longer_on_a_busy_machine(load: float, factor: float) -> None:
    assert running.busy_factor(load) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("value", "digits", "told"),
    [(None, 4, "–"), (2123.0, 3, "2,120"), (999.6, 4, "999.6"), (1.5e-6, 3, "0.0000015"), (0.0, 3, "0")],
)
def test_numbers_are_written_without_powers_of_ten(value: float | None, digits: int, told: str) -> None:
    assert running.plain(value, digits) == told
