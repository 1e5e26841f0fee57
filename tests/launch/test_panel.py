"""The panel: what is in it, how it fits, and the figures that it is made of."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, Group

from launch.attempts import Attempt, duration
from launch.figures import Figures, change_of, in_bytes, percent, since_start, work
from launch.panel import Cell, Text, View, panel_lines, trend
from launch.run_files import Folder, Probed, Saved

FAILED = Attempt(
    attempt=1, node=0, began="2026-01-02T03:04:05+00:00", seconds=9.0, from_step=0, to_step=300, reached=310,
    exit_code=6, signal=None, kind="LostPeerError", sentence="rank 1 was killed by SIGKILL",
    next="restarted after 5 s",
)  # fmt: skip
FIGURES = Figures(
    step=412, loss=0.52594, loss_change=-0.031, clips_per_s=1234.5, wait_share=0.004, tflops=301.2, mfu=0.305,
    left_s=72.0, gpu_memory_bytes=61.2e9, gpu_memory_share=0.78, host_memory_bytes=12.3e9, lr=6.25e-4,
    momentum=0.99925, skipped_steps=3, bad_samples=1,
)  # fmt: skip
PAGE = "http://mlflow.example:5000/#/experiments/12/runs/0123456789abcdef0123456789abcdef"
FULL = View(
    run="runs/a-long-name-of-a-run-that-somebody-has-given/and-a-folder-below-it/run",
    figures=FIGURES,
    steps=800,
    verdict=("collapsing", "the spread of the target's features is 0.08 of the untrained encoder's " * 2),
    folder=Folder(
        saved=(Saved(400, 959.0), Saved(200, 500.0)),
        probes=(Probed(400, {"position": 0.98, "shape": 0.45}, {"position": 0.97}),),
        attempts=(FAILED, replace(FAILED, attempt=2)),
        page=PAGE,
        responses=(
            {"step": 90, "response": "warned", "reason": "it falls"},
            {
                "step": 300,
                "response": "rolled back",
                "to_step": 200,
                "changes": {"lr_scale": 0.5, "momentum": 0.99},
                "reason": "gone",
            },
        ),
    ),
    now_s=1000.0,
)
EMPTY = View("runs/x", Figures(), None, None, Folder(), 0.0, pace="starting")


def drawn(view: View, width: int) -> list[str]:
    """As a terminal of that width shows it, where rich would break what is too long."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True, highlight=False)
    console.print(Group(*panel_lines(view, width)))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("view", [FULL, EMPTY, replace(FULL, verdict=("healthy", ""))])
def test_no_line_is_wider_than_the_terminal(view: View, width: int) -> None:
    lines = drawn(view, width)
    assert len(lines) == len(panel_lines(view, width)), "none was broken in two"
    assert all(len(line) < width for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_there_is_to_say_is_in_it(width: int) -> None:
    lines = drawn(FULL, width)
    text = " ".join(" ".join(lines).split())
    for words in (
        "412/800 52% 72 s left",
        "0.5259 ↓ 3%",
        "collapsing",
        "the spread of the target's features",
        "1234.5 clips/s, MFU 30%",
        "0.4% waiting",
        "lr 6.25e-4, momentum 0.99925",
        "GPU 61.2 GB (78%), host 12.3 GB",
        "step 400, 41 s ago",
        "3 steps skipped, 1 sample replaced",
        "position 0.98 (untrained 0.97), shape 0.45, at step 400",
        "2 times; last: rank 1 was killed by SIGKILL",
        "rolled back at step 300 to step 200, learning rate × 0.5, momentum at least 0.99: gone",
    ):
        assert words in text, words
    assert PAGE in "".join(line.strip().removeprefix("mlflow").strip() for line in lines)


def test_two_columns_where_they_fit_and_one_where_not() -> None:
    assert any("loss" in line and "health" in line for line in drawn(FULL, 80))
    assert not any("loss" in line and "health" in line for line in drawn(FULL, 60))


def test_its_lines_stay_where_they_are_while_figures_change() -> None:
    """Calm: another figure, or a word of health, moves no label."""
    later = replace(FIGURES, step=799, loss=12.5, loss_change=0.0, left_s=0.0, lr=1e-5, momentum=0.123456)
    later = replace(later, clips_per_s=123456.7, mfu=None, tflops=1234.5, host_memory_bytes=123e9)
    labels = [[line[:10] for line in drawn(replace(FULL, figures=found), 80)] for found in (FIGURES, later)]
    assert labels[0] == labels[1]
    healthy, ill = drawn(replace(FULL, verdict=("healthy", "")), 80), drawn(FULL, 80)
    assert [line[:10] for line in healthy[:5]] == [line[:10] for line in ill[:5]]


def test_a_long_sentence_ends_after_three_lines() -> None:
    cell = Cell("why", Text("a word and another " * 60), is_wide=True)
    assert len(panel_lines(EMPTY, 60, [cell])) == len(panel_lines(EMPTY, 60)) + 3


def lines_of(losses: list[float], **values: Any) -> list[dict[str, Any]]:
    return [
        {"step": 10 * n, "loss": loss, "perf/clips_per_s": 4.0, "time_s": 3.0 * n, "data/wait_share": 0.1}
        | values
        for n, loss in enumerate(losses, start=1)
    ]


def test_time_left_is_that_of_the_last_lines_of_this_start() -> None:
    lines = lines_of([1.0] * 8)
    assert Figures.of(lines, 100).left_s == pytest.approx(20 * 0.3)
    resumed = [*lines, {**lines[-1], "step": 90, "time_s": 50.0}, {**lines[-1], "step": 95, "time_s": 60.0}]
    assert since_start(resumed) == resumed  # 24 s, then 50: it went on
    resumed[-2]["time_s"], resumed[-1]["time_s"] = 2.0, 12.0
    assert len(since_start(resumed)) == 2
    assert Figures.of(resumed, 100).left_s == pytest.approx(5 * 2.0)
    assert Figures.of(lines[:1], 100).left_s is None
    assert Figures.of(lines, None).left_s is None
    assert Figures.of(lines, 80).left_s == 0
    assert Figures.of(lines, 100, limit_s=26.0).left_s == pytest.approx(2.0), "24 s of 26 are over"
    assert Figures.of(lines, 100, limit_s=90.0).left_s == pytest.approx(20 * 0.3)


def test_the_first_line_of_a_start_says_nothing_of_waiting() -> None:
    assert Figures.of(lines_of([1.0]), 100).wait_share is None
    assert Figures.of(lines_of([1.0, 1.0]), 100).wait_share == 0.1


def test_lines_that_are_no_steps_and_values_that_are_no_numbers_are_left_out() -> None:
    lines = [*lines_of([2.0, 1.0]), {"step": 25, "probe/trained/shape": 0.5}]
    found = Figures.of(lines, 100)
    assert (found.step, found.loss) == (20, 1.0)
    odd = Figures.of(
        [{"step": 3, "perf/clips_per_s": 4.0, "loss": None, "optim/lr": "x", "time_s": 10**400}], 9
    )
    assert (odd.step, odd.loss, odd.lr, odd.left_s) == (3, None, None, None)
    assert Figures.of([], 9) == Figures()


def test_a_trend_is_said_when_it_is_more_than_noise() -> None:
    noise = [1.0, 1.1, 0.9, 1.05, 0.95] * 4
    assert change_of(noise) == 0.0
    assert change_of([1.0, 1.01] * 5 + [0.9, 0.91] * 5) == pytest.approx(0.905 / 1.005 - 1)
    assert change_of([1.0] * 12) is None, "too few before"
    assert (trend(0.0), trend(-0.1), trend(0.25)) == ("→ steady", "↓ 10%", "↑ 25%")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (in_bytes(61.24e9), "61.2 GB"),
        (in_bytes(141.2e9), "141 GB"),
        (in_bytes(8.4e8), "840 MB"),
        (in_bytes(2.5e12), "2.5 TB"),
        (percent(0.0004), "0%"),
        (percent(0.004), "0.4%"),
        (percent(0.0099), "1%"),
        (percent(0.416), "42%"),
        (duration(4 * 86400), "96.0 h"),
        (duration(12.5 * 86400), "12.5 days"),
        (work(Figures(tflops=0.0206, mfu=None)), ["20.6 GFLOP/s"]),
        (work(Figures(tflops=301.24)), ["301 TFLOP/s"]),
        (work(Figures()), []),
    ],
)
def test_figures_in_words(said: object, words: object) -> None:
    assert said == words
