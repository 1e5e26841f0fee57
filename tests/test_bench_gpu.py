"""What one GPU is measured for fits into its time, and each part names what there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, micro_batch, speed_tables
from benchmarks.contenders import CASES, TRIED
from benchmarks.gpu import EXTRA, LIMITS, TOTAL_S, listed, parts_of
from benchmarks.measuring import RESULTS, row
from benchmarks.running import ROOT, Part
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


def test_what_the_page_says_of_an_h100_is_what_was_measured() -> None:
    page = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    now, before = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("gpu", "gpu_before"))
    parts = {part["name"]: part["rows"] for part in now["parts"]}
    step, large = ({row["metric"]: row for row in parts[name]} for name in ("step", "large step"))
    rate, share, average = (
        "clips a second, equal masks",
        "share of the best matrix rate, ours",
        "part: moving average",
    )
    (first,) = (each for each in before["parts"][0]["rows"] if each["metric"] == rate)
    step_ms, large_ms = (1000 * clips / rows[rate]["ours"] for rows, clips in ((step, 16), (large, 8)))
    floor_ms = step_ms * step[share]["ours"] / 100
    assert (
        f"{first['ratio']:.1f} and {step[rate]['ratio']:.1f} times Meta's, on two machines; "
        f"of the matrix rate {step[share]['ours']:.0f} % and {large[share]['ours']:.0f} %, both missed"
    ) in page
    mine, theirs = (100 * rows[average]["ours"] / ms for rows, ms in ((step, step_ms), (large, large_ms)))
    assert f"ViT-L {mine:.1f} %; ViT-g, of 8 clips a step, {theirs:.1f} %, missed" in page
    assert f"takes {step_ms:.0f} ms, and its operations at the matrix rate {floor_ms:.0f}." in page
    fastest: dict[str, float] = {}
    for each in parts["attention"]:
        if each["unit"] == "1/s":
            stack = each["case"].split(": ")[1].split(",")[0]
            fastest[stack] = min(1000 / each["ours"], fastest.get(stack, 1e9))
    predictor, encoder, target = 12 * fastest["predictor"], 24 * fastest["encoder"], 24 * fastest["target"]
    assert f"it takes {predictor + encoder + target:.0f} ms a step by the fastest kernels" in page
    assert f"{predictor:.0f} in the predictor's 12 blocks" in page
    assert f"{encoder:.0f} in the context encoder's 24" in page and before["commit"][:10] in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{first['ratio']:.1f} to {step[rate]['ratio']:.1f} times as fast as theirs" in readme
    assert f"{target:.0f} in the target's" in page
    said = f"{first['ours']:.1f} clips/s and Meta's {first['reference']:.1f}, {first['ratio']:.2f} times"
    assert said in page
    copies = parts["feeding"][0]
    assert f"copies at {100 * copies['ratio']:.0f} % of a bare one" in page
    memory = " ".join((ROOT / "docs" / "speed" / "memory.md").read_text().split())
    for each, words in zip(
        parts["micro-batch"],
        (
            "took {} % less than was said for a ViT-L ({} clips, {} GB)",
            "{} % less for a ViT-g ({} clips, {} GB)",
        ),
        strict=True,
    ):
        less = f"{100 - 100 * each['ratio']:.0f}"
        assert words.format(less, each["clips"], f"{each['ours']:.1f}") in memory
