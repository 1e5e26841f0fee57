"""What the first rank prints while it trains: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launch.console import make_console
from pretrain.watch import Line

LINE_EVERY_S = 10.0


class TrainDisplay:
    """Shows logged steps; sentences go above the bar. Silent when not enabled."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = make_console()
        self._enabled = enabled
        self._said_s = 0.0
        self._is_warm = False
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("  train    "),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._bar.add_task("train", total=None, note="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, line: Line) -> None:
        health = "" if line.verdict.word == "healthy" else f", {line.verdict.word}"
        speed = f"{line.clips_per_s:.1f} clips/s"
        if self._is_warm:  # the first line counts the start of the workers
            speed += f", {line.wait_share:.0%} waiting for data"
        self._is_warm = True
        loss = "no finite loss" if line.loss is None else f"loss {line.loss:.4f}"
        note = f"{loss}, {speed}{health}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=line.step, total=line.steps, note=note)
            return
        now_s = time.monotonic()
        is_end = line.step in (1, line.steps)
        if self._enabled and (is_end or now_s - self._said_s >= LINE_EVERY_S):
            self._said_s = now_s
            self._console.print(f"  train     step {line.step}/{line.steps}: {note}")

    def say(self, sentence: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"  {sentence}")
        elif self._enabled:
            self._console.print(f"  {sentence}")
