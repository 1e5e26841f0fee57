"""What the first rank prints: a panel on a terminal, plain lines to everything else."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch.console import mend_terminal
from launch.live import LinesLive, takes_panel
from launch.train_display import LivePanel, TrainDisplay
from pretrain import pulse
from pretrain.sentinel import Verdict
from pretrain.watch import Line

VALUES = {
    "loss": 0.5,
    "perf/clips_per_s": 42.0,
    "perf/tflops": 0.1,
    "data/wait_share": 0.01,
    "optim/lr": 1e-3,
    "optim/momentum": 0.99,
    "optim/skipped_steps": 0,
    "data/bad_samples": 0,
    "system/host_memory_bytes": 1.1e9,
    "time_s": 1.0,
}
LINE = Line(1, 90, 0.5, 42.0, 0.01, Verdict("healthy", ""), VALUES)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def at(step: int, word: str = "healthy", reason: str = "", **values: float) -> Line:
    return replace(LINE, step=step, verdict=Verdict(word, reason), values={**VALUES, **values})  # type: ignore[arg-type]


def printed(shown: list[tuple[float, Line | str]]) -> list[str]:
    """What a pipe gets when lines are shown, and sentences said, at these seconds."""
    sink, clock = io.StringIO(), Clock()
    with TrainDisplay(
        enabled=True, console=Console(file=sink, width=200, soft_wrap=True), clock=clock
    ) as display:
        for clock.now_s, each in shown:
            if isinstance(each, str):
                display.say(each)
            else:
                display.show(each)
    return sink.getvalue().splitlines()


def test_a_pipe_gets_the_first_the_last_and_a_line_every_ten_seconds() -> None:
    lines = printed([(float(step), at(step, time_s=float(step))) for step in range(1, 91)])
    steps = [int(line.split("step ")[1].split("/")[0]) for line in lines]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 90]
    assert lines[1] == (
        "  train     step 11/90: loss 0.5000, 42.0 clips/s, 1% waiting for data, 100 GFLOP/s, host 1.1 GB, "
        "79 s left"
    )
    assert "waiting" not in lines[0], "the first counts the start of the workers"
    assert not any("\x1b" in line for line in lines)


def test_a_verdict_that_changes_is_said_at_once_with_its_reason() -> None:
    warned, still = at(2, "warning", "the spread falls"), at(3, "warning", "the spread falls still")
    lines = printed([(0, at(1)), (1, warned), (2, still), (3, at(4)), (4, at(5))])
    assert [line.split(":")[0].split()[-1] for line in lines] == ["1/90", "2/90", "4/90"]
    assert lines[1].endswith(", warning: the spread falls")
    assert "warning" not in lines[2]


def test_a_reason_that_the_run_has_just_said_is_not_said_twice() -> None:
    said = "step 2: collapsed: the spread is gone"
    lines = printed([(0, at(1)), (1, said), (1, at(2, "collapsed", "the spread is gone"))])
    assert lines[1:] == [f"  {said}", lines[2]]
    assert lines[2].endswith(", collapsed")


def test_what_went_wrong_and_brackets_are_printed_as_they_are() -> None:
    values = {"optim/skipped_steps": 2, "data/bad_samples": 1}
    lines = printed([(0, "weights of [encoder] taken"), (1, at(1, **values))])
    assert lines[0] == "  weights of [encoder] taken"
    assert lines[1].endswith("2 steps skipped, 1 sample replaced")


@pytest.mark.parametrize(
    ("environment", "is_terminal", "takes"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
    ],
)
def test_a_panel_is_for_terminals_that_draw(
    environment: dict[str, str], is_terminal: bool, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = Console(file=io.StringIO(), force_terminal=is_terminal, _environ=os.environ)
    assert takes_panel(console) == takes


def test_on_a_terminal_sentences_stand_above_a_panel_that_is_drawn_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    (tmp_path / "probes.jsonl").write_text(json.dumps({"step": 1, "scores": {"shape": 0.5}}) + "\n")
    sink = io.StringIO()
    console = Console(
        file=sink, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm-256color"}
    )
    with TrainDisplay(enabled=True, run=tmp_path, steps=90, console=console) as display:
        display.show(at(45, "warning", "the spread falls"))
        display.say("a sentence of the run")
    text = ESCAPES.sub("", sink.getvalue())
    last = text[text.rindex("train   ") :]
    for words in (
        "45/90",
        "50%",
        "warning",
        "the spread falls",
        "42.0 clips/s",
        "shape 0.50",
        str(tmp_path)[:40],
    ):
        assert words in last, words
    assert "a sentence of the run" not in last and "a sentence of the run" in text
    raw = sink.getvalue()
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1, "the cursor is there again"


def test_the_panel_moves_with_the_rank_between_two_lines(tmp_path: Path) -> None:
    clock = Clock()
    pulse.begin(tmp_path / "rank-00000.pulse")
    try:
        panel = LivePanel(None, 90, clock)
        assert panel.view().pace == "starting"
        pulse.beat("forward", 1)
        panel.take(at(10, time_s=1.0))
        panel.take(at(20, time_s=2.0))
        pulse.beat("backward", 25)
        view = panel.view()
        assert (view.figures.step, view.pace) == (24, "")
        assert view.figures.left_s == pytest.approx(7.0)
        clock.now_s = 3.0
        assert panel.view().figures.left_s == pytest.approx(4.0), "it counts down between lines"
        pulse.beat("waiting for a batch", 25)
        panel.view()
        clock.now_s = 30.0
        assert panel.view().pace == "waiting for a batch 27 s"
        pulse.beat("checkpoint")
        assert panel.view().pace == "checkpoint"
    finally:
        pulse.end()


def test_after_a_rollback_the_lines_that_were_taken_back_are_gone() -> None:
    panel = LivePanel(None, 90)
    for step, loss in ((10, 1.0), (20, 9.0), (30, 9.0), (20, 2.0)):
        panel.take(replace(at(step, loss=loss, time_s=step), loss=None))
    assert [line["step"] for line in panel._lines] == [10, 20]
    assert [line["loss"] for line in panel._lines] == [1.0, 2.0]


def test_a_terminal_that_becomes_narrower_is_cleared_of_all_rows_that_it_broke() -> None:
    """It breaks each of two lines of 70 characters into three rows of 30: the drawing goes up five."""
    sink = io.StringIO()
    console = Console(
        file=sink, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm-256color"}
    )
    live = LinesLive(lambda width: "\n".join(["x" * min(70, width - 1)] * 2), console, 0.001)
    with live:
        live.refresh()
        for width, ups in ((80, 1), (30, 5), (30, 1), (80, 1)):
            console.width = width
            begin = len(sink.getvalue())
            live.refresh()
            assert sink.getvalue()[begin:].count("\x1b[1A") == ups, width


def test_what_was_killed_while_it_drew_leaves_a_cursor_and_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_torn, left in (
        (Terminal(), True, "\x1b[?25h\n"),
        (Terminal(), False, "\x1b[?25h"),
        (io.StringIO(), True, ""),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("TERM", "xterm")
        mend_terminal(is_torn=is_torn)
        assert stream.getvalue() == left


def test_time_left_is_that_of_the_limit_where_it_comes_first() -> None:
    clock, sink = Clock(), io.StringIO()
    with TrainDisplay(
        enabled=True, limit_s=40.0, console=Console(file=sink, width=200, soft_wrap=True), clock=clock
    ) as display:
        for step in (1, 11, 21):
            clock.now_s = float(step - 1)
            display.show(at(step, time_s=clock.now_s))
    assert sink.getvalue().splitlines()[-1].endswith(", 20 s left (train.time_limit_s)")

    panel = LivePanel(None, 90, clock, deadline_s=40.0)
    panel.take(at(10, time_s=10.0))
    panel.take(at(20, time_s=20.0))
    view = panel.view()
    assert (view.figures.left_s, view.pace) == (None, "20 s left (train.time_limit_s)")
    patient = LivePanel(None, 90, clock, deadline_s=400.0)
    patient.take(at(10, time_s=10.0))
    patient.take(at(20, time_s=20.0))
    assert patient.view().figures.left_s == pytest.approx(70.0)


@pytest.mark.parametrize(
    ("stopped", "said"),
    [(None, "done"), ("train.time_limit_s is over", "stopped: train.time_limit_s is over")],
)
def test_the_panel_of_a_run_that_ended_says_so_and_no_time_left(stopped: str | None, said: str) -> None:
    panel = LivePanel(None, 90)
    panel.take(at(10, time_s=1.0))
    panel.take(at(20, time_s=2.0))
    panel.end(stopped)
    view = panel.view()
    assert (view.figures.left_s, view.pace) == (None, said)
