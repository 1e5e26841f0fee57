"""restarts.jsonl: one object for each time that a supervised run was started, and how that ended."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from data_pipeline.storage import open_regular

RESTARTS_FILE = "restarts.jsonl"
TAIL_BYTES = 1 << 16
LARGEST = 2**53  # beyond it float64 does not tell whole numbers apart


@dataclass(frozen=True)
class Attempt:
    """One start of a run, under a supervisor.

    began: ISO time, UTC. from_step, to_step: of the newest checkpoint at its start and end; 0 for none.
    reached: the last step logged. signal: that ended the command, else None and exit_code is its own.
    kind, sentence: what it ended with. next: what the supervisor did then.
    """

    attempt: int
    node: int
    began: str
    seconds: float
    from_step: int
    to_step: int
    reached: int
    exit_code: int | None
    signal: str | None
    kind: str
    sentence: str
    next: str


def newest_step(run: Path) -> int:
    """Step of the newest checkpoint that was published; 0 without one."""
    folders = (run / "checkpoints").glob("step-*[0-9]/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in folders), default=0)


def last_logged(run: Path) -> int:
    """The last step of metrics.jsonl; 0 without one."""
    try:
        with open_regular(run / "metrics.jsonl") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue  # half-written by a crash, or cut by the seek
    return 0


def restarts_file(run: Path, node: int) -> Path:
    """A file for each machine: appends of several to one would mix on a network's file system."""
    return run / (RESTARTS_FILE if node == 0 else f"restarts-node-{node:05d}.jsonl")


def write_attempt(run: Path, attempt: Attempt) -> None:
    """Append it. Raises: OSError."""
    with restarts_file(run, attempt.node).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(attempt)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_attempts(run: Path, node: int | None = None) -> list[Attempt]:
    """All attempts in order, of one machine or of all; lines that a crash left half-written are left out."""
    paths = sorted(run.glob("restarts*.jsonl")) if node is None else [restarts_file(run, node)]
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                plain: dict[str, Any] = json.loads(line)
                attempt = Attempt(**plain)
            except (ValueError, TypeError, RecursionError):
                continue
            if _is_whole(attempt):
                found.append(attempt)
    return sorted(found, key=lambda attempt: (attempt.began, attempt.node))


def _is_whole(attempt: Attempt) -> bool:
    """Whether each value is of its kind: a damaged file may hold anything."""
    counts = (attempt.attempt, attempt.node, attempt.from_step, attempt.to_step, attempt.reached)
    codes = () if attempt.exit_code is None else (attempt.exit_code,)
    words = (attempt.began, attempt.kind, attempt.sentence, attempt.next, attempt.signal or "")
    return (
        all(isinstance(count, int) and abs(count) <= LARGEST for count in (*counts, *codes))
        and isinstance(attempt.seconds, int | float)
        and 0 <= attempt.seconds <= LARGEST
        and all(isinstance(word, str) for word in words)
    )


def attempts_table(run: Path, attempts: list[Attempt]) -> Table:
    """An attempt a row: from which checkpoint to which step, how it ended, and what came of it."""
    table = Table(
        title=f"{len(attempts)} attempts of {run}" if len(attempts) != 1 else f"1 attempt of {run}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
    )
    has_nodes = any(attempt.node for attempt in attempts)
    for name, justify in (("#", "right"), ("began, UTC", "left"), ("took", "right"), ("steps", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("ended with")
    table.add_column("then")
    for each in attempts:
        number = f"{each.node}:{each.attempt}" if has_nodes else str(each.attempt)
        ended = each.signal or f"exit {each.exit_code}"
        table.add_row(
            number,
            each.began.replace("T", " ")[:19],
            duration(each.seconds),
            f"{each.from_step} → {max(each.reached, each.to_step)}",
            f"{ended}: {told}" if (told := without_advice(each.sentence)) else ended,
            each.next,
        )
    return table


def without_advice(sentence: str) -> str:
    """What happened; not what to type next, which was right at the time."""
    return sentence.partition("; `foreframe train ")[0].partition("; no checkpoint was written yet")[0]


def duration(seconds: float) -> str:
    """Such as 42 s, 7 min, 3.2 h, 5.5 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86400:.1f} days"
