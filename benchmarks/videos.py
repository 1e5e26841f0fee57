"""The real videos that a benchmark reads, in a folder that the user names."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.decode import VideoFacts, inspect
from data_pipeline.errors import DataError


@dataclass(frozen=True)
class Source:
    """A video of the user's folder, and how often it is in the set."""

    path: Path
    facts: VideoFacts
    copies: int
    clips: int

    def __str__(self) -> str:
        kind = f"{self.facts.width}x{self.facts.height} {self.facts.codec}, {self.facts.duration_s:.0f} s"
        return f"{self.path.name} ({kind}) x {self.copies}: {self.copies * self.clips} clips"


def find_sources(folder: Path, length_s: float, num_clips: int) -> list[Source]:
    """Whole videos of 480 to 1080 rows, each copied until all give the same share of `num_clips` clips.

    Raises: SystemExit when there are none.
    """
    found: list[tuple[Path, VideoFacts]] = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with contextlib.suppress(DataError):
            facts = inspect(path)
            side = min(facts.width, facts.height)
            if 480 <= side <= 1080 and facts.duration_s >= length_s and _decodes(path):
                found.append((path, facts))
    if not found:
        raise SystemExit(f"{folder} holds no whole video of 480 to 1080 rows and {length_s:g} s or more")
    share = -(-num_clips // len(found))
    whole = [int(facts.duration_s / length_s) for _, facts in found]
    return [Source(*each, -(-share // n), n) for each, n in zip(found, whole, strict=True)]


def _decodes(path: Path) -> bool:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-xerror", "-i", str(path), "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True)
    return done.returncode == 0 and not done.stderr


def copy_sources(sources: Sequence[Source], folder: Path, most: int | None = None) -> None:
    folder.mkdir()
    for source in sources:
        for number in range(min(source.copies, most or source.copies)):
            shutil.copyfile(source.path, folder / f"{source.path.stem}-{number:03d}{source.path.suffix}")


def warm(folder: Path) -> None:
    for path in folder.iterdir():
        path.read_bytes()
