"""What one GPU is measured for fits into its time, and each part names what there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, micro_batch, speed_tables
from benchmarks.contenders import CASES, TRIED
from benchmarks.gpu import EXTRA, LIMITS, TOTAL_S, listed, parts_of
from benchmarks.measuring import row
from benchmarks.running import Part
from benchmarks.speed_tables import gpu_table, limits_table
from data_pipeline.errors import EXIT_PREEMPTED
from launch.processes import facts_of

START_S = 20.0  # of the process that runs the parts, at most: torch read from a cold disk


def test_limits_of_all_usual_parts_come_to_less_than_nine_minutes() -> None:
    parts = parts_of(["vjepa2=/x"], "cuda")
    assert [part.name for part in parts] == list(LIMITS)
    assert {part.name for part in parts if part.is_extra} == set(EXTRA)
    assert sum(part.limit_s for part in parts if not part.is_extra) + START_S <= TOTAL_S <= 540
    assert all(part.limit_s <= 240 for part in parts)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_part_names_a_benchmark_and_cases_that_there_are(device: str) -> None:
    for part in parts_of([], device):
        assert part.needs is None or part.needs.exists()
        cases = micro_batch.CASES[device] if part.name == "micro-batch" else CASES[device]
        known = {*cases, *TRIED.get(device, {})}
        words = list(part.words)
        named = [words[place + 1] for place, word in enumerate(words) if word == "--case"]
        assert named or part.name == "smoke"
        assert set(named) <= known
        assert words[words.index("--device") + 1] == device


def test_the_peer_is_told_to_the_step_alone() -> None:
    told = [part.name for part in parts_of(["vjepa2=/x"], "cuda") if "--peer" in part.words]
    assert told == ["step"]


def test_the_list_has_every_part_with_its_limit() -> None:
    lines = listed().splitlines()
    assert [line.split("  ")[0].strip() for line in lines[:-1]] == list(LIMITS)
    assert all(f"{limit_s} s" in line for line, (limit_s, _) in zip(lines, LIMITS.values(), strict=False))


def test_parts_are_measured_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    rows = "import json; print(json.dumps({'rows': [{'case': 'c', 'metric': 'm', 'ours': 1.0}]}))"

    def parts(peers: list[str], device: str) -> list[Part]:
        extra = Part("three", ["-c", "raise SystemExit(3)"], 20, is_extra=True)
        return [Part("one", ["-c", rows], 20), Part("two", ["-c", rows], 20), extra]

    def call(*words: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(file), *words])
        gpu.main()
        return [(part["name"], part["ended"]) for part in json.loads(file.read_text())["parts"]]

    monkeypatch.setattr(gpu, "parts_of", parts)
    assert call("--only", "two") == [("two", "done")]
    assert call("--only", "three") == [("two", "done"), ("three", "failed")]
    capsys.readouterr()
    assert call("--missing") == [("one", "done"), ("two", "done"), ("three", "failed")]
    assert "two: at most" not in capsys.readouterr().err  # it was done
    with pytest.raises(SystemExit):
        call("--only", "four")
    assert "the parts are one, two, three" in capsys.readouterr().err


def test_the_table_has_every_row_and_says_what_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = row("ViT", "clips a second", "clips/s", [6.0, 8.0, 7.0], [2.0, 2.0, 2.0], "Meta's code")
    absent = row("ViT", "to the GPU", "GB/s", [0.0]) | {"ours": None}
    parts = [
        {"name": "step", "ended": "out of time", "rows": [beside]},
        {"name": "feeding", "ended": "done", "rows": [absent]},
        {"name": "attention", "ended": "failed", "rows": []},
    ]
    facts = {"device": "NVIDIA H100", "versions": {"torch": "2.13"}, "commit": None, "date": "2026-01-02"}
    (tmp_path / "gpu.json").write_text(json.dumps(facts | {"parts": parts}))
    monkeypatch.setattr(speed_tables, "RESULTS", tmp_path)
    lines = gpu_table().splitlines()
    assert lines[2:5] == [
        "| ViT | clips a second | 7 clips/s | 2, Meta's code | 3.50 (3.00, 4.00) |",
        "| ViT | to the GPU | – |  |  |",
        "| attention | failed | | | |",
    ]
    assert "Not whole: step (out of time), attention (failed)." in lines[-1]
    assert "NVIDIA H100" in lines[-1]


def test_the_limits_are_shown_with_their_sum() -> None:
    lines = limits_table().splitlines()
    shown = [int(line.split("|")[2]) for line in lines[2:]]
    assert shown[:-1] == [limit_s for limit_s, _ in LIMITS.values()]
    assert shown[-1] == sum(limit_s for name, (limit_s, _) in LIMITS.items() if name not in EXTRA)


def test_what_runs_is_ended_with_the_one_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    asks = "os.kill(os.getppid(), signal.SIGTERM)"
    words = (
        f"import os, signal, time; open({str(pid)!r}, 'w').write(str(os.getpid())); {asks}; time.sleep(600)"
    )
    monkeypatch.setattr(gpu, "parts_of", lambda peers, device: [Part("hangs", ["-c", words], 60)])
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == EXIT_PREEMPTED
    facts = facts_of(int(pid.read_text()))
    assert facts is None or facts.state == "Z"
