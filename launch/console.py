"""What commands print: progress of a stage with its rate, tables, and errors as sentences."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from data_pipeline import progress
from data_pipeline.errors import ConfigError, ForeframeError, Problem
from launch.unread import Unbroken

Report = progress.Progress  # rich has a Progress of its own
LINE_EVERY_S = 10.0  # without a terminal, a stage says how far it is this often


def make_console(stderr: bool = False) -> Console:
    """A console that keeps long lines whole when its output is no terminal, and needs no reader."""
    stream = Unbroken.of(sys.stderr if stderr else sys.stdout)
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def mend_terminal(*, is_torn: bool) -> None:
    """Show the cursor: what drew there may have been killed (`is_torn`), within a line and with it hidden."""
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        sys.stdout.write("\x1b[?25h" + "\n" * is_torn)
        sys.stdout.flush()


class Stages:
    """Shows the stages that a long job reports, and keeps how many seconds each took.

    On a terminal a bar a stage with its rate; elsewhere a plain line at most every 10 s, and one at its end.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._console, self._clock = console, clock
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._finished: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None

    @contextmanager
    def showing(self) -> Iterator[Report]:
        """Yield the function that a job reports to; bars are drawn for as long as this is open."""
        if self._console.is_terminal:
            columns = (  # narrow enough for 80 characters with the longest note
                TextColumn("  {task.description:<7}"),
                BarColumn(bar_width=10),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
                TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn(
                    "[dim]{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")
                ),
            )
            with Progress(*columns, console=self._console) as self._bars:
                yield self.report
            self._bars = None
            self._tasks.clear()
        else:
            yield self.report

    def report(self, stage: str, done: int, total: int, note: str) -> None:
        now = self._clock()
        started = self._started.setdefault(stage, now)
        self.seconds[stage] = now - started
        measured = "/s" in note  # the job's own rate says more
        rate = done / (now - started) if done and now > started and not measured else 0.0
        unit, note = (note, "") if note.isalpha() else ("", note)
        speed = f"{rate:.3g} {unit}/s".replace(" /", "/") if rate else ""
        told = ", ".join(part for part in (speed, note) if part)
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, note="")
            self._bars.update(self._tasks[stage], completed=done, total=total or None, note=told)
            return
        is_done = total > 0 and done >= total
        if stage in self._finished or (not is_done and now - self._said.get(stage, started) < LINE_EVERY_S):
            return
        self._said[stage] = now
        if is_done:
            self._finished.add(stage)
        of = f"/{total}" if total else ""
        self._console.print(f"  {stage:<9} {done}{of} in {now - started:.1f} s, {told}".removesuffix(", "))


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[stage]`, whatever way it is left."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A small table: the first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def probe_table(found: dict[str, Any]) -> list[Table]:
    """What `run_probe` returned, an encoder a row; 1 is best, a dash where there is no score.

    Under the name of each score stands its unit: R², or the share that is right. One table of
    what is true of each tubelet or video, and one of the labels of clips with a column an encoder, as far as
    there are.
    """
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["scores"]))
    tried = tuple(f"{kind} " for kind in found.get("tried", {}))
    of_labels = [name for name in names if name.startswith(tried)] if tried else []
    others = [name for name in names if name not in of_labels]
    where = "Frozen features" + ("" if found["step"] is None else f" at step {found['step']}")
    eval_clips, clips = found["num_eval_clips"], found["num_train_clips"] + found["num_eval_clips"]
    what = (
        f"true states, {eval_clips} eval clips"
        if found["kind"] == "states"
        else f"retrieval of clips of the same video, {clips} clips"
    )
    tables = [_scores_table(f"{where}: {what}", found, others)] if others else []
    if of_labels:
        told = found["labels"]
        title = f"{where}: {len(told['labels'])} labels, shares right of {told['num_eval_clips']} eval clips"
        rows = [row for row in found["rows"] if any(name in row["scores"] for name in of_labels)]
        cells = [[name, *(_score(row["scores"].get(name)) for row in rows)] for name in of_labels]
        tables.append(make_table(title, ["probe", *(row["encoder"] for row in rows)], cells))
    return tables


def _score(score: float | None) -> str:
    return "—" if score is None else f"{score:.3f}"


def _scores_table(title: str, found: dict[str, Any], names: Sequence[str]) -> Table:
    rows = [
        [row["encoder"], *(_score(row["scores"].get(name)) for name in names)]
        for row in found["rows"]
        if any(name in row["scores"] for name in names)
    ]
    units = found.get("units", {})  # probes of older versions wrote none
    heads = [f"{name}\n{unit}" if (unit := units.get(name)) else name for name in names]
    return make_table(title, ["encoder", *heads], rows)


def print_error(error: ForeframeError) -> None:
    """The error on stderr as a sentence; a config's problems as an aligned list, and that nothing ran."""
    console = make_console(stderr=True)
    label = Text(f"{error.label}: ", style="bold red" if error.label == "error" else "bold yellow")
    if not isinstance(error, ConfigError):
        console.print(label + Text(str(error)))
        return
    count = len(error.problems)
    what = "a setting" if count == 1 else f"{count} settings"
    console.print(label + Text(f"{what} must be mended; nothing was started"))
    listed = "\n".join(str(problem) for problem in error.problems)
    rows = [_columns(problem) for problem in error.problems]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for where, found, need in rows:
        line = Text(f"  {where:<{widths[0]}}  " if widths[0] else "  ", style="dim")
        line.append(f"{found:<{widths[1]}}", style="bold not dim").append(f"  {need}", style="not dim")
        console.print(line, soft_wrap=True)
    if more := str(error).removeprefix(listed).strip():
        console.print(Text(more), soft_wrap=True)


def _columns(problem: Problem) -> tuple[str, str, str]:
    """Where it stands; the key and what it holds; what it must be."""
    found = problem.key if problem.got is None else f"{problem.key} is {problem.got!r}"
    tried = f"; try {' or '.join(str(value) for value in problem.try_)}" if problem.try_ else ""
    return problem.file or "", found, f"need {problem.need}{tried}"
