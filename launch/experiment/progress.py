"""How far an experiment is while it goes, and how long one takes by the pace of one that has ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from launch.attempts import duration, last_logged
from launch.experiment.config import ExperimentConfig
from launch.experiment.runs import Run, cells_of

LINE_EVERY_S, LOOK_EVERY_S = 180.0, 1.0  # without a terminal, and on one
STEPS = "train.steps"
Say = Callable[[str], None]


class Watch:
    """Says how far all runs are: on a terminal in a line that moves, elsewhere in one every 3 minutes."""

    def __init__(
        self,
        runs: Iterable[Run],
        say: Say,
        *,
        moves: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = {run.element.run: run.element.config.train.steps for run in runs}
        self._say, self._clock = say, clock
        self._moves = sys.stdout.isatty() if moves is None else moves
        self._begun_s = self._looked_s = clock()
        self._begun_at = self._done()
        self._is_drawn = False

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._is_drawn:
            self._draw("")
        self._say(line)

    def look(self) -> None:
        """Called often while runs train; reads their files now and then."""
        if self._is_due():
            self._tell(self.told())

    def asked(self, who: str, done: int, total: int) -> None:
        """How far one run is that is asked after its training."""
        if self._is_due():
            self._tell(f"{who}: {done} of {total}")

    def told(self) -> str:
        """Steps of all runs, and what is left at the pace since this command began."""
        done, total = self._done(), sum(self._steps.values())
        passed = self._clock() - self._begun_s
        words = f"{done:,} of {total:,} steps of all runs, {done / total:.0%}"
        gained = done - self._begun_at
        return words if gained <= 0 else f"{words}, {duration(passed * (total - done) / gained)} left"

    def _done(self) -> int:
        return sum(min(steps, last_logged(run)) for run, steps in self._steps.items())

    def _is_due(self) -> bool:
        now = self._clock()
        if now - self._looked_s < (LOOK_EVERY_S if self._moves else LINE_EVERY_S):
            return False
        self._looked_s = now
        return True

    def _tell(self, words: str) -> None:
        if self._moves:
            self._draw(words)
        else:
            self._say(words)

    def _draw(self, words: str) -> None:
        sys.stdout.write(f"\r\x1b[K{words}")
        sys.stdout.flush()
        self._is_drawn = bool(words)


def steps_of(experiment: ExperimentConfig) -> int | None:
    """Of all runs together; None where a stage leaves them to its config."""
    total = 0
    for name, stage in experiment.stages.items():
        for cell, level in cells_of(experiment, name):
            settings = stage.settings | ({} if level is None else level.settings)
            steps = (settings | stage.arms[cell.arm].settings).get(STEPS)
            if not isinstance(steps, int):
                return None
            total += steps
    return total


def forecast(stages: Mapping[str, Sequence[Run]], results: Sequence[Path], parallel: int) -> str:
    """How long training will take by the first result that is there; else how many steps there are.

    results: of this experiment and of its quick form, of this machine.
    """
    total = sum(run.element.config.train.steps for runs in stages.values() for run in runs)
    for path in results:
        try:
            found = json.loads(path.read_bytes())
            config = {key: value for key, value in found["config"].items() if key != "changes"}
            steps, seconds = steps_of(ExperimentConfig.model_validate(config)), float(found["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or of another release
            continue
        if steps and seconds > 0 and not (found.get("missing") or found.get("not_asked")):
            return (
                f"{total:,} steps in all: about {duration(seconds / steps * total / parallel)} of training "
                f"at the pace of {path}"
            )
    folders = " or ".join(str(path.parent) for path in results)
    return f"{total:,} steps in all; no result in {folders} tells yet how long they take here"
