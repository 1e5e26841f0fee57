"""What a run's folder says of its submissions: where they were handed to, how they are watched, their end.

Imports no torch.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.storage import open_regular
from launch.lock import SUBMISSIONS_FOLDER
from launch.run_files import Reader
from launch.submit.base import LOGS_FOLDER
from launch.submit.node_process import exit_code, is_alive, read_nodes

RECORD_FILE = "submission.json"
HANDED_OVER = ("started", "submitted")
LOG_END_BYTES = 1 << 14
# In the log of a Slurm job, which goes on when it is queued again: a start of it, or its end.
SLURM_LINE = re.compile(rb"^\S+ (?:job \S+ on .*, start \d+|ended with exit code (\d+).*)$", re.MULTILINE)


@dataclass(frozen=True)
class End:
    """That a job has ended. exit_code: None where nobody could write it down."""

    exit_code: int | None

    @property
    def says(self) -> str:
        return (
            "it has ended, and left no exit code"
            if self.exit_code is None
            else f"it ended with exit code {self.exit_code}"
        )


@dataclass(frozen=True)
class Submitted:
    """A submission that a run's folder has.

    number: its folder's name. place: local, slurm and so on. state: started, submitted, dry run; or not
    started, and why. id: of the job where it was handed to. told: label to what to type. kind: train or
    shard. end: None while none is seen. is_seen: a process of it lives on this machine.
    """

    number: str
    place: str
    state: str
    id: str | None
    when: str
    told: Mapping[str, str]
    kind: str = "train"
    end: End | None = None
    is_seen: bool = False

    @property
    def is_handed_over(self) -> bool:
        return self.state in HANDED_OVER

    @property
    def is_open(self) -> bool:
        """Whether it may wait or run: it was handed over, and no end of it is seen."""
        return self.is_handed_over and self.end is None

    @property
    def when_s(self) -> float | None:
        """Of its making, seconds since 1970."""
        try:
            return datetime.fromisoformat(self.when).timestamp()
        except ValueError:
            return None

    @property
    def name(self) -> str:
        """Such as slurm 17, or local."""
        return f"{self.place} {self.id}" if self.id else self.place

    @property
    def says(self) -> str:
        """In a line for people: which job, and what stops it; or how it has ended."""
        if self.end is not None:
            return f"{self.name}: {self.end.says}"
        stop = self.told.get("stop")
        return f"{self.name}; {stop} stops it" if stop else self.name


def submission_folders(run: Path) -> list[Path]:
    """Of a run, oldest first: those that are named by a number alone."""
    try:
        with os.scandir(run / SUBMISSIONS_FOLDER) as entries:
            found = [entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()]
    except OSError:
        return []
    return [run / SUBMISSIONS_FOLDER / name for name in sorted(found, key=lambda name: (int(name), name))]


def last_submission(reader: Reader) -> Submitted | None:
    """The newest that was handed over, else the newest; None without any.

    One that was refused, as an earlier one runs or waits, counts less than that; so does one that has ended
    while an earlier one lives on this machine. Of a folder in which a run has begun, those of a data set of
    the same name are passed over; and what cannot be read, which is among the reader's troubles.
    """
    is_run = (reader.run / "config.yaml").exists()
    newest: Submitted | None = None
    ended: Submitted | None = None
    was_refused = True
    for folder in reversed(submission_folders(reader.run)):
        record = reader.document(str(Path(SUBMISSIONS_FOLDER) / folder.name / RECORD_FILE))
        if record is None or (is_run and record.get("kind") == "shard"):
            continue
        found = _submitted(folder, record)
        if found.is_open and (was_refused or found.is_seen):
            return found
        newest = newest or found
        if found.end is not None and found.is_handed_over:
            ended = ended or found
            was_refused = was_refused and found.end.exit_code == UsageError.exit_code
    return ended or newest


def _submitted(folder: Path, record: Mapping[str, Any]) -> Submitted:
    told, own = record.get("told"), record.get("id")
    return Submitted(
        number=folder.name,
        place=place_kind(record) or "?",
        state=str(record.get("state", "")),
        id=None if own is None else str(own),
        when=str(record.get("submitted", "")),
        told={str(label): str(text) for label, text in told.items()} if isinstance(told, dict) else {},
        kind="shard" if record.get("kind") == "shard" else "train",
        end=end_of(folder, record),
        is_seen=_is_seen(folder),
    )


def place_kind(record: Mapping[str, Any]) -> str | None:
    place = record.get("place")
    return str(place["kind"]) if isinstance(place, dict) and "kind" in place else None


def end_of(folder: Path, record: Mapping[str, Any]) -> End | None:
    """That a job which was handed over has ended, as far as its folder and this machine's processes tell."""
    kind = place_kind(record)
    if kind in ("local", "ssh"):
        return _end_of_nodes(folder / LOGS_FOLDER)
    if kind == "slurm" and not record.get("elements"):
        return _end_in_log(folder / LOGS_FOLDER / f"{record.get('id')}.log")
    return None


def _end_of_nodes(logs: Path) -> End | None:
    """Once each node that was started has left an exit code, or was of this machine and is gone."""
    nodes, here = read_nodes(logs), socket.gethostname()
    codes = {node: exit_code(logs, node) for node in nodes}
    if not nodes:
        return None
    for node, process in nodes.items():
        if codes[node] is None and (process.host != here or is_alive(process)):
            return None
    return End(codes[min(codes)])


def _is_seen(folder: Path) -> bool:
    here = socket.gethostname()
    nodes = read_nodes(folder / LOGS_FOLDER)
    return any(process.host == here and is_alive(process) for process in nodes.values())


def _end_in_log(path: Path) -> End | None:
    """As the batch script says in its last line, after which it may have been started anew."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, 2) - LOG_END_BYTES))
            lines = list(SLURM_LINE.finditer(file.read()))
    except OSError:
        return None
    if not lines or lines[-1][1] is None:
        return None
    return End(int(lines[-1][1]))
