"""A run's folder read from outside, while it may be written: nothing is locked, changed or believed.

What is half-written, damaged or not to be read is left out and named. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import why
from data_pipeline.storage import open_regular, read_regular
from launch.attempts import Attempt, read_attempts

TAIL_BYTES = 1 << 19  # some hundred lines of metrics.jsonl
RUN_FILE, METRICS_FILE, PROBES_FILE = "mlflow_run.json", "metrics.jsonl", "probes.jsonl"
HEALTH_FILE = "health.jsonl"
LAST_STEP = 2**53  # beyond it float64 does not tell steps apart
LARGEST = 1e100  # beyond any number of float32; sums and squares of what is smaller stay finite


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was published. at_s: seconds since 1970."""

    step: int
    at_s: float


@dataclass(frozen=True)
class Probed:
    """What was read out of the encoder at a step, by score; of the untrained one where that was said too."""

    step: int
    scores: Mapping[str, float]
    untrained: Mapping[str, float]


@dataclass(frozen=True)
class Folder:
    """What a run's folder holds beside its metrics.

    saved: newest first. probes: by step, oldest first. attempts: under a supervisor. page: of MLflow in a
    browser, or what to type to see it. responses: of health.jsonl, oldest first. troubles: what could not be
    read.
    """

    saved: tuple[Saved, ...] = ()
    probes: tuple[Probed, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    page: str | None = None
    responses: tuple[Mapping[str, Any], ...] = ()
    troubles: tuple[str, ...] = ()

    def best(self, score: str | None) -> tuple[Saved, float] | None:
        """The checkpoint with the highest score of this name, and the score; the later of equals."""
        if score is None:
            return None
        scores = {each.step: each.scores[score] for each in self.probes if score in each.scores}
        known = [(scores[each.step], each.step, each) for each in self.saved if each.step in scores]
        return None if not known else (max(known)[2], max(known)[0])


@dataclass
class Reader:
    """Reads files of a run's folder and notes what could not be read."""

    run: Path
    troubles: list[str] = field(default_factory=list)

    def folder(self) -> Folder:
        found = Folder(
            saved=self.saved(),
            probes=self.probes(),
            attempts=self.attempts(),
            page=self.page(),
            responses=tuple(self.lines(HEALTH_FILE)),
        )
        return Folder(**{**vars(found), "troubles": tuple(self.troubles)})

    def metrics(self) -> list[dict[str, Any]]:
        """The last logged steps in order; of a step's lines a value that comes later counts."""
        steps: dict[int, dict[str, Any]] = {}
        for line in self.lines(METRICS_FILE):
            steps.setdefault(line["step"], {}).update(line)
        return [steps[step] for step in sorted(steps)]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The last objects of a file of lines that have a step; the writer's own torn line is not named."""
        text = self._tail(self.run / name)
        if text is None:
            return []
        found, damaged = [], 0
        rows = text.split("\n")
        for place, row in enumerate(rows):
            plain = _object(row)
            if plain is not None and _is_step(plain.get("step")):
                found.append(plain)
            elif row.strip() and place < len(rows) - 1:
                damaged += 1
        if damaged:
            what = "a line" if damaged == 1 else f"{damaged} lines"
            self.troubles.append(f"{name}: {what} cannot be read")
        return found

    def document(self, name: str) -> dict[str, Any] | None:
        """A file that holds one object; None without it, or when it cannot be read."""
        try:
            data = read_regular(self.run / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.troubles.append(f"{name}: {why(error)}")
            return None
        plain = _object(data.decode(errors="replace"))
        if plain is None:
            self.troubles.append(f"{name}: damaged")
        return plain

    def saved(self) -> tuple[Saved, ...]:
        found = []
        for path in (self.run / "checkpoints").glob("step-*[0-9]/manifest.json"):
            number = path.parent.name.removeprefix("step-")
            try:
                at_s = path.stat().st_mtime
            except OSError:  # it is removed this moment
                continue
            if number.isdecimal():
                found.append(Saved(int(number), at_s))
        return tuple(sorted(found, key=lambda each: each.step, reverse=True))

    def probes(self) -> tuple[Probed, ...]:
        found: dict[int, Probed] = {}
        for line in self.lines(PROBES_FILE):
            scores, untrained = numbers(line.get("scores")), numbers(line.get("untrained"))
            before = found.get(line["step"])
            if before is not None:  # online and offline ones may stand side by side
                scores, untrained = {**before.scores, **scores}, {**before.untrained, **untrained}
            found[line["step"]] = Probed(line["step"], scores, untrained)
        if found and not found[max(found)].untrained:  # `foreframe probe` says it in its own file
            last = found[max(found)]
            found[last.step] = Probed(last.step, last.scores, self._untrained())
        return tuple(found[step] for step in sorted(found))

    def _untrained(self) -> dict[str, float]:
        rows = (self.document("probe.json") or {}).get("rows")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("encoder") == "untrained":
                return numbers(row.get("scores"))
        return {}

    def attempts(self) -> tuple[Attempt, ...]:
        try:
            return tuple(read_attempts(self.run))
        except OSError as error:
            self.troubles.append(f"restarts.jsonl: {why(error)}")
            return ()

    def page(self) -> str | None:
        plain = self.document(RUN_FILE)
        if plain is None:
            return None
        address = printable(str(plain.get("address", ""))).replace(" ", "")
        if address.startswith(("http://", "https://")):
            place = printable(f"experiments/{plain.get('experiment_id')}/runs/{plain.get('run_id')}")
            return f"{address.rstrip('/')}/#/{place.replace(' ', '')}"
        return f"foreframe ui {self.run}"

    def _tail(self, path: Path) -> str | None:
        """The end of a file, from the begin of a line on; None without it."""
        try:
            with open_regular(path) as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - TAIL_BYTES))
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.troubles.append(f"{path.name}: {why(error)}")
            return None
        if size > TAIL_BYTES:
            data = data.partition(b"\n")[2]
        return data.decode(errors="replace")


def finite(value: object) -> float | None:
    """A number that can be reckoned with, else None: a crash or another program may have left anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST <= value <= LARGEST else None


def numbers(plain: object) -> dict[str, float]:
    """The finite numbers of an object by name; {} of anything else."""
    found = {str(name): finite(value) for name, value in plain.items()} if isinstance(plain, dict) else {}
    return {name: value for name, value in found.items() if value is not None}


def printable(text: str) -> str:
    """Without what would act on a terminal, such as ESC; each kind of space and line break a space."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "" for sign in text)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_STEP


def _object(text: str) -> dict[str, Any] | None:
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) else None
