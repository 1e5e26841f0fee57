"""Signs of life of a rank and its loader workers, in a small file that others may look at.

Whatever moves calls `beat`: it costs a microsecond and does nothing until `join` has named the file. What a
rank is doing is one of PLACES with the step, in the order in which a step goes through them.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

PLACES = ("starting", "waiting for a batch", "forward", "backward", "update", "checkpoint", "ending")
SLOT = struct.Struct("<QQQQ")  # pid, beats, step, index in PLACES
NUM_SLOTS = 257  # the rank and up to 256 loader workers


@dataclass(frozen=True)
class Beats:
    """What one process has noted. step: that it works on, from 1; 0 before the first."""

    pid: int
    beats: int
    step: int
    place: str


class _Slot:
    def __init__(self, path: Path, number: int) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.path, self._start = path, number * SLOT.size
        self._beats = self.step = self.place = 0

    def beat(self, place: str | None, step: int | None) -> None:
        self._beats += 1
        self.step = self.step if step is None else step
        self.place = self.place if place is None else PLACES.index(place)
        SLOT.pack_into(self._map, self._start, os.getpid(), self._beats, self.step, self.place)


_own: _Slot | None = None


def begin(path: Path) -> None:
    """Make the file for this rank and beat there from now on."""
    path.write_bytes(bytes(NUM_SLOTS * SLOT.size))
    join(path, 0)


def join(path: Path | None, slot: int) -> None:
    """Beat in a slot of a rank's file from now on: 0 for the rank, 1 + n for its n-th loader worker.

    Without a file, or past its last slot, nothing beats.
    """
    global _own
    _own = _Slot(path, slot) if path is not None and slot < NUM_SLOTS else None
    beat()


def file() -> Path | None:
    """The file that this process beats in."""
    return None if _own is None else _own.path


def doing() -> tuple[int, str]:
    """What this process has noted last: the step it works on, and a place; (0, "") where nothing beats."""
    return (0, "") if _own is None else (_own.step, PLACES[_own.place])


def beat(place: str | None = None, step: int | None = None) -> None:
    """Note that something has moved; place and step stay as they are where they are not given."""
    if _own is not None:
        _own.beat(place, step)


def end() -> None:
    """Beat no more."""
    global _own
    _own = None


def read(path: Path) -> list[Beats]:
    """What the rank, which is first, and its workers have noted; empty before `begin`.

    Raises: OSError when there is no such file.
    """
    data = path.read_bytes()
    slots = (SLOT.unpack_from(data, start) for start in range(0, len(data), SLOT.size))
    return [
        Beats(pid, beats, step, PLACES[min(place, len(PLACES) - 1)])
        for pid, beats, step, place in slots
        if pid
    ]
