"""What a run's folder says of its last submission: where it was handed to, and how it is watched and stopped.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.lock import SUBMISSIONS_FOLDER
from launch.run_files import Reader

RECORD_FILE = "submission.json"


@dataclass(frozen=True)
class Submitted:
    """The last submission that a run's folder has.

    number: its folder's name. place: local, slurm and so on. state: started, submitted, dry run; or not
    started, and why. id: of the job where it was handed to. told: label to what to type.
    """

    number: str
    place: str
    state: str
    id: str | None
    when: str
    told: Mapping[str, str]

    @property
    def is_handed_over(self) -> bool:
        return self.state in ("submitted", "started")

    @property
    def name(self) -> str:
        """Such as slurm 17, or local."""
        return f"{self.place} {self.id}" if self.id else self.place

    @property
    def says(self) -> str:
        """In a line for people: which job, and what stops it."""
        stop = self.told.get("stop")
        return f"{self.name}; {stop} stops it" if stop else self.name


def last_submission(reader: Reader) -> Submitted | None:
    """The newest; None without any. One that cannot be read is among the reader's troubles."""
    folders = sorted((reader.run / SUBMISSIONS_FOLDER).glob("[0-9]*"), reverse=True)
    for folder in folders[:1]:
        record = reader.document(str(Path(SUBMISSIONS_FOLDER) / folder.name / RECORD_FILE))
        if record is None:
            continue
        place, told = record.get("place"), record.get("told")
        own = record.get("id")
        return Submitted(
            number=folder.name,
            place=str(place.get("kind", "?")) if isinstance(place, dict) else "?",
            state=str(record.get("state", "")),
            id=None if own is None else str(own),
            when=str(record.get("submitted", "")),
            told={str(label): str(text) for label, text in told.items()} if isinstance(told, dict) else {},
        )
    return None
