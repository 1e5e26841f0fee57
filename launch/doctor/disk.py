"""The disk that a job writes to: how fast, and how much room there is."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import why
from launch.doctor.check import Check
from launch.figures import in_bytes

FULL_BYTES, QUICK_BYTES = 256 << 20, 32 << 20
BLOCK_BYTES = 4 << 20
SLOW_BYTES_S = 100e6  # a network disk that is slower holds up saves of large models
LONG_SAVE_S = 60.0
ROOM_SHARE = 0.05


@dataclass(frozen=True)
class Speed:
    """Bytes a second. write: to the disk, with fsync; read: what was dropped from memory before."""

    write: float
    read: float


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there: where it would be made."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


@contextmanager
def nameless_file(folder: Path) -> Iterator[int]:
    """A file that no name leads to: the kernel removes it when this process ends, however it ends."""
    try:
        handle = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # file systems such as NFS have none: at once unlinked is the next best
        handle, name = tempfile.mkstemp(prefix=".foreframe-doctor-", dir=folder)
        os.unlink(name)
    try:
        yield handle
    finally:
        os.close(handle)


def measure(folder: Path, size: int) -> Speed:
    """Write, fsync and read back `size` bytes there; nothing stays. Raises: OSError."""
    block = os.urandom(BLOCK_BYTES)  # a disk that compresses is not taken in
    count = max(1, size // BLOCK_BYTES)
    with nameless_file(folder) as handle:
        started_s = time.perf_counter()
        for _ in range(count):
            left = memoryview(block)
            while left:
                left = left[os.write(handle, left) :]
        os.fsync(handle)
        written_s = time.perf_counter() - started_s
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        started_s = time.perf_counter()
        while os.read(handle, BLOCK_BYTES):
            pass
        read_s = time.perf_counter() - started_s
    total = count * BLOCK_BYTES
    return Speed(total / max(written_s, 1e-9), total / max(read_s, 1e-9))


def check_speed(folder: Path, speed: Speed, checkpoint: int | None) -> Check:
    """checkpoint: bytes of one, over all ranks, or None."""
    found = f"{in_bytes(speed.write)}/s written, {in_bytes(speed.read)}/s read in {folder}"
    save_s = 0.0 if checkpoint is None else checkpoint / speed.write
    if checkpoint is not None:
        found += f"; a checkpoint of {in_bytes(checkpoint)} takes {save_s:.0f} s"
    faster = "put `out` on a faster disk, and copies on train.checkpoint_store"
    if speed.write < SLOW_BYTES_S or save_s > LONG_SAVE_S:
        return Check("disk speed", "warn", found, faster)
    return Check("disk speed", "pass", found)


def check_room(folder: Path, free: int, total: int, checkpoint: int | None, kept: int) -> Check:
    """kept: checkpoints that a run keeps; one more lies there while it is written."""
    found = f"{in_bytes(free)} of {in_bytes(total)} free in {folder}"
    if checkpoint is not None:
        needed = (kept + 1) * checkpoint
        found += f", {in_bytes(needed)} for {kept} + 1 checkpoints"
        if free < needed:
            remedy = "make room, choose another `out`, or lower train.keep_checkpoints"
            return Check("disk room", "fail", found, remedy)
    if free < ROOM_SHARE * total:
        return Check("disk room", "warn", found, "make room: saves that find none are given up")
    return Check("disk room", "pass", found)


def look_at_disk(out: str, *, is_quick: bool, checkpoint: int | None, kept: int) -> list[Check]:
    """Speed and room where `out` is or would be. out: a local folder."""
    folder = nearest(Path(out).expanduser())
    told = os.statvfs(folder)
    free, total = told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize
    room = check_room(folder, free, total, checkpoint, kept)
    size = QUICK_BYTES if is_quick else FULL_BYTES
    if free < 2 * size:
        return [room, Check("disk speed", "skipped", f"too little room to try in {folder}", "make room")]
    try:
        speed = measure(folder, size)
    except OSError as error:
        remedy = "choose another out=..., or mend its permissions"
        return [room, Check("disk speed", "fail", f"{folder} cannot be written: {why(error)}", remedy)]
    return [check_speed(folder, speed, checkpoint), room]
