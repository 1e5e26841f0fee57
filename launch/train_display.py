"""What the first rank prints while it trains: a live panel on a terminal, plain lines elsewhere.

The loop only sets attributes. The panel is drawn by rich's thread, and what it shows of the run's folder is
read by another, so that a slow disk holds up neither the loop nor the drawing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group

from launch.attempts import duration
from launch.console import make_console
from launch.figures import Figures, left, memory, percent, troubles, with_line, work
from launch.live import LinesLive, takes_panel
from launch.panel import View, panel_lines
from launch.run_files import Folder, Reader
from pretrain import pulse
from pretrain.watch import Line

LINE_EVERY_S = 10.0
DRAWN_A_SECOND = 2.0
FOLDER_EVERY_S = 3.0
LAST_LOOK_S = 1.0
STILL_S = 5.0  # after which it is said what the rank is at
SLOW_PLACES = ("starting", "checkpoint", "ending")


class TrainDisplay:
    """Shows logged steps; sentences go above the panel. Silent when not enabled.

    run, steps: the run's folder, and how many steps it takes, for a panel. limit_s: seconds from now after
    which it is ended, which may be before its last step; None for no limit.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        run: Path | None = None,
        steps: int | None = None,
        limit_s: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or make_console()
        self._enabled, self._clock = enabled, clock
        self._said_s: float | None = None
        self._said, self._word = "", "healthy"
        self._lines: tuple[Mapping[str, Any], ...] = ()
        self._deadline_s = None if limit_s is None else clock() + limit_s
        draws = enabled and takes_panel(self._console)
        self._panel = LivePanel(run, steps, clock, self._deadline_s) if draws else None
        self._live: LinesLive | None = None

    def __enter__(self) -> Self:
        if self._panel is not None:
            self._live = LinesLive(self._panel.draw, self._console, DRAWN_A_SECOND)
            self._live.start()
            self._panel.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None and self._panel is not None:
            self._panel.stop()
            self._live.stop()
            self._live = None

    def show(self, line: Line) -> None:
        if self._panel is not None:
            self._panel.take(line)
        elif self._enabled:
            self._print(line)

    def end(self, stopped: str | None) -> None:
        """The panel says that no step follows, and why there are fewer than planned; None: all were taken."""
        if self._panel is not None:
            self._panel.end(stopped)

    def say(self, sentence: str) -> None:
        if self._enabled:
            self._said = sentence
            self._console.print(f"  {sentence}", markup=False)

    def _print(self, line: Line) -> None:
        """At most every 10 s, but the first and the last step, and a verdict that changes, at once."""
        now_s, word = self._clock(), line.verdict.word
        is_due = self._said_s is None or now_s - self._said_s >= LINE_EVERY_S
        self._lines = with_line(self._lines, {**line.values, "step": line.step})
        is_warm = len(self._lines) > 1  # the first line counts the start of the workers
        if not (is_due or line.step in (1, line.steps) or word != self._word):
            return
        self._said_s = now_s
        reason = line.verdict.reason
        is_new = word != self._word and bool(reason) and reason not in self._said  # the run may have said it
        self._word = word
        figures = Figures.of(self._lines, line.steps)
        told = [
            "no finite loss" if line.loss is None else f"loss {line.loss:.4f}",
            f"{line.clips_per_s:.1f} clips/s",
            *([f"{percent(line.wait_share)} waiting for data"] if is_warm else []),
            *work(figures),
            *memory(figures),
            *([left_words(figures, self._deadline_s, now_s)] if figures.left_s else []),
            *troubles(figures),
            *([word + (f": {reason}" if is_new else "")] if word != "healthy" or is_new else []),
        ]
        self._console.print(f"  train     step {line.step}/{line.steps}: {', '.join(told)}", markup=False)


def limited(left_s: float, deadline_s: float | None, now_s: float) -> bool:
    """Whether the run's time is over before its steps are."""
    return deadline_s is not None and deadline_s - now_s < left_s


def left_words(figures: Figures, deadline_s: float | None, now_s: float) -> str:
    """Until the last step; or until the limit `train.time_limit_s`, where that comes first."""
    left_s = figures.left_s
    if left_s is None or deadline_s is None or not limited(left_s, deadline_s, now_s):
        return left(figures)
    within_s = max(0.0, deadline_s - now_s)
    return f"{duration(within_s)} left (train.time_limit_s)"


class LivePanel:
    """What a panel shows, set by the loop and by a thread that looks into the run's folder."""

    def __init__(
        self,
        run: Path | None,
        steps: int | None,
        clock: Callable[[], float] = time.monotonic,
        deadline_s: float | None = None,
    ) -> None:
        """deadline_s: by the clock, when the run's time is over; None for no limit."""
        self._run, self._steps, self._clock, self._deadline_s = run, steps, clock, deadline_s
        self._ending: str | None = None
        self._folder = Folder()
        self._lines: tuple[Mapping[str, Any], ...] = ()
        self._figures, self._figures_s = Figures(), clock()
        self._verdict: tuple[str, str] | None = None
        self._doing, self._since_s = pulse.doing(), clock()
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, name="panel-folder", daemon=True)

    def start(self) -> None:
        if self._run is not None:
            self._reader.start()

    def stop(self) -> None:
        """After a last look into the folder, where a checkpoint may just have been saved."""
        self._stopped.set()
        if self._reader.is_alive():
            self._reader.join(LAST_LOOK_S)

    def take(self, line: Line) -> None:
        self._lines = with_line(self._lines, {**line.values, "step": line.step})
        self._steps = line.steps
        figures = Figures.of(self._lines, line.steps)
        self._verdict = (line.verdict.word, line.verdict.reason)
        self._figures, self._figures_s = replace(figures, loss=line.loss), self._clock()

    def end(self, stopped: str | None) -> None:
        self._ending = "done" if stopped is None else f"stopped: {stopped}"

    def draw(self, width: int) -> Group:
        """Called by the drawing thread."""
        return Group(*panel_lines(self.view(), width))

    def view(self) -> View:
        """As of now."""
        now_s, doing = self._clock(), pulse.doing()
        if doing != self._doing:
            self._doing, self._since_s = doing, now_s
        (at, place), still_s = doing, now_s - self._since_s
        figures, folder = self._figures, self._folder
        step = max(figures.step, at - 1)  # that it works on, between two lines
        if not self._lines and folder.saved:
            step = max(step, folder.saved[0].step)
        left_s = figures.left_s
        if left_s is not None:
            left_s = max(0.0, left_s - (now_s - self._figures_s))
        pace = "" if self._lines else "starting"
        if self._ending is not None or step == self._steps:
            pace, left_s = self._ending or pace, None
        elif not self._stopped.is_set() and (place in SLOW_PLACES or still_s > STILL_S) and place:
            pace = f"{place} {duration(still_s)}" if still_s > STILL_S else place
            left_s = None
        if left_s is not None and limited(left_s, self._deadline_s, now_s):
            pace, left_s = left_words(replace(figures, left_s=left_s), self._deadline_s, now_s), None
        return View(
            run=str(self._run) if self._run is not None else "",
            figures=replace(figures, step=step, left_s=left_s),
            steps=self._steps,
            verdict=self._verdict,
            folder=folder,
            now_s=time.time(),
            pace=pace,
        )

    def _read(self) -> None:
        assert self._run is not None
        is_last = False
        while not is_last:
            is_last = self._stopped.is_set()
            self._folder = Reader(self._run).folder()
            self._stopped.wait(FOLDER_EVERY_S)
