"""Whole shards of remote data sets on this machine's disk, shared by the processes of a host."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.errors import FULL_DISK, DataError, RefusedError, StorageError, why
from data_pipeline.format import ShardDone, tar_name
from data_pipeline.storage import Storage

MAX_REMOVALS = 5  # of what is being brought, by others, before that is said
POLL_S = 0.05  # between two looks for room, where downloads of others take all of it


class ShardCache:
    """Whole shards of remote data sets on this machine's disk, for every process that names the same folder.

    A shard has the name of its content, so that data sets cannot mix, and shows when it is whole and its
    sha256 right. One process downloads it while those that want it too wait; if that one fails or is killed,
    the next of them tries. What was read least recently is removed before a download begins, so that shards
    and downloads under way never exceed `max_bytes`; a shard that is being read may go, its reader keeps it.

    The folder, of mode 0700, holds

        lock            held for moments: while room is made, a shard appears, or leftovers are removed
        SHA256.tar      a shard; its time of modification is that of its last use
        SHA256.lock     held by the thread that brings the shard; as long, in holes, as what it will write
        *SHA256.*part   what has come of it; of no use, and removed, once the lock is free

    Locks are flock's, which the kernel frees when their process ends, however it ends. It can be pickled.
    Raises: DataError, as Storage does and for a shard other than its done record says or larger than the
    cache, a full disk, and a folder that is another's or cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._wanted: list[tuple[Storage, ShardDone]] = []
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()  # of the two
        self._spoilt: dict[str, str] = {}  # what this process need not bring again to say so again
        self._own_folder()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.folder, self.max_bytes)

    def read(self, storage: Storage, done: ShardDone, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each span (start, size) of the shard's tar, which is downloaded if it is not here."""
        with self._named(), self._open(storage, done) as file:
            found = [os.pread(file.fileno(), size, start) for start, size in spans]
        for data, (start, size) in zip(found, spans, strict=True):
            if len(data) != size:
                name = storage.address(tar_name(done.stem))
                raise DataError(f"{name} is cut short: {len(data)} of {size} bytes at offset {start}")
        return found

    def drop_damaged(self, done: ShardDone) -> bool:
        """Remove the shard if its file is not what its done record says; True when it is not here then."""
        try:
            with FileIO(self._path(done, "tar")) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == done.tar_sha256:
                    return False
            with self._named(), self._accounts():
                self._path(done, "tar").unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return True

    def prefetch(self, storage: Storage, dones: Sequence[ShardDone]) -> None:
        """Have shards brought in the background, in their order; returns at once.

        dones: those in use first, which are kept then; what exceeds `max_bytes` with those before it is left
        out. One that others bring, or that has no room yet, is passed over. A later call replaces what has
        not begun. Trouble is left to those who read the shard, and meet it.
        """
        once = list(dict.fromkeys(dones))
        totals = accumulate(done.tar_bytes for done in once)
        fitting = [done for done, total in zip(once, totals, strict=True) if total <= self.max_bytes]
        for done in reversed(fitting):  # else one of them, unused for long, would make room for another
            with suppress(OSError):
                _touch(self._path(done, "tar"))
        with self._gate:
            self._wanted = [(storage, done) for done in fitting]
            if fitting and self._thread is None:
                self._thread = threading.Thread(target=self._bring_wanted, name="shard-prefetch", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Begin no more downloads in the background; one under way goes on until it or the process ends."""
        with self._gate:
            self._wanted = []

    def _bring_wanted(self) -> None:
        while True:
            with self._gate:
                if not self._wanted:
                    self._thread = None
                    return
                storage, done = self._wanted.pop(0)
            with suppress(DataError, OSError):
                self._open(storage, done, waits=False).close()

    def _open(self, storage: Storage, done: ShardDone, *, waits: bool = True) -> FileIO:
        """The shard's file. Unless it `waits` for others and for room, BlockingIOError says that it must."""
        with suppress(FileNotFoundError):
            return self._open_whole(done)
        if done.tar_sha256 in self._spoilt:
            raise DataError(self._spoilt[done.tar_sha256])
        for _ in range(MAX_REMOVALS):
            with suppress(FileNotFoundError):  # somebody removed what was coming
                return self._open_brought(storage, done, waits)
        raise StorageError(
            f"{self.folder}, the cache of shards: others remove its files while they come; name a folder of "
            f"this run's own with data.cache_folder"
        )

    def _open_brought(self, storage: Storage, done: ShardDone, waits: bool) -> FileIO:
        """`_open` of a shard that is not here yet."""
        self._own_folder()
        with self._alone(done, waits) as lock:
            with suppress(FileNotFoundError):  # others may have brought it meanwhile
                return self._open_whole(done)
            if done.tar_bytes > self.max_bytes:
                name = storage.address(tar_name(done.stem))
                raise DataError(
                    f"{name} has {done.tar_bytes} bytes and the cache may have {self.max_bytes}: raise "
                    f"data.cache_bytes, or set data.remote to ranges, which needs no cache"
                )
            while not self._make_room(done, lock):
                if not waits:
                    raise BlockingIOError("others' downloads need the room")
                time.sleep(POLL_S)
            try:
                return self._bring(storage, done, lock)
            except (StorageError, RefusedError) as error:
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{type(error).__name__} {error}".encode(), 0)
                raise

    def _open_whole(self, done: ShardDone) -> FileIO:
        """The shard's file, noting that it was used now. Raises: FileNotFoundError when it is not here."""
        file = FileIO(self._path(done, "tar"))
        if os.fstat(file.fileno()).st_size != done.tar_bytes:  # somebody cut it: a new one will replace it
            file.close()
            raise FileNotFoundError
        _touch(file.fileno())
        return file

    def _bring(self, storage: Storage, done: ShardDone, lock: int) -> FileIO:
        """Download the shard, compare it with its done record, and open it before anyone can remove it."""
        name, part = tar_name(done.stem), self._path(done, "part")
        size, digest = storage.info(name).size_bytes, ""
        for _ in range(2 if size == done.tar_bytes else 0):  # a larger one might overrun its room
            try:
                storage.download(name, part)
            except DataError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno in FULL_DISK:
                    raise OSError(cause.errno, cause.strerror) from error  # `_named` tells of the folder
                if isinstance(cause, FileNotFoundError):
                    raise cause from error
                raise
            with FileIO(part) as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())  # a name must not stand for less after a loss of power
            if (size, digest) == (done.tar_bytes, done.tar_sha256):
                with self._accounts():
                    os.replace(part, self._path(done, "tar"))
                    os.ftruncate(lock, 0)
                    return self._open_whole(done)
            part.unlink()  # and once more: it may have been changed on its way
        found = f"{size} bytes of {done.tar_bytes}" + (f", sha256 {digest[:12]}…, twice" if digest else "")
        spoilt = DataError(
            f"{storage.address(name)} is not the tar that its done record names ({found}): put it back, or "
            f"shard the videos again; `foreframe verify {storage.root}` tells of all such shards"
        )
        if digest:
            self._spoilt[done.tar_sha256] = str(spoilt)
        raise spoilt

    def _make_room(self, done: ShardDone, lock: int) -> bool:
        """Remove the least recently used until the shard may come; False while others' downloads need that
        room. What may come is then noted in `lock`, its lock, which this thread holds."""
        with self._accounts():
            os.ftruncate(lock, 0)
            free = self.max_bytes - done.tar_bytes - self._sweep(done)
            if free < 0:
                return False
            shards = [(path.stat(), path) for path in self.folder.glob("*.tar")]
            free -= sum(stat.st_size for stat, _ in shards)
            for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
                if free >= 0:
                    break
                path.unlink()
                free += stat.st_size
            os.ftruncate(lock, done.tar_bytes)
        return True

    def _sweep(self, done: ShardDone) -> int:
        """Remove what killed processes left, also of this shard; bytes that other downloads may have."""
        coming, held = 0, set()
        for path in self.folder.glob("*.lock"):
            try:
                lock = _lock(path, waits=False)
            except BlockingIOError:
                coming += path.stat().st_size
                held.add(path.stem)
                continue
            path.unlink()
            os.close(lock)
        held.discard(done.tar_sha256)
        for path in self.folder.glob("*.*part"):
            if path.name.lstrip(".").partition(".")[0] not in held:
                path.unlink()
        return coming

    @contextmanager
    def _alone(self, done: ShardDone, waits: bool) -> Iterator[int]:
        """With the lock to bring a shard, which goes with what was not finished. Yields its file."""
        path = self._path(done, "lock")
        lock = _lock(path, waits)
        try:
            yield lock
        finally:
            try:
                with self._accounts():
                    for part in self.folder.glob(f"*{done.tar_sha256}.*part"):
                        part.unlink()
                    path.unlink(missing_ok=True)
            finally:
                os.close(lock)

    @contextmanager
    def _accounts(self) -> Iterator[None]:
        """Alone with the folder. Nothing waits for another lock within, so there is no deadlock."""
        lock = _lock(self.folder / "lock", waits=True)
        try:
            yield
        finally:
            os.close(lock)

    def _path(self, done: ShardDone, ending: str) -> Path:
        return self.folder / f"{done.tar_sha256}.{ending}"

    def _own_folder(self) -> None:
        """Make the folder, if it is not there. Raises: DataError when others could write to it, or we not."""
        with self._named():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stat = self.folder.stat()
        is_ours = stat.st_uid == os.geteuid() and not stat.st_mode & 0o022
        if not is_ours or not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise DataError(
                f"{self.folder}, the cache of shards, is another user's, or can be written by others, or not "
                f"by you: name a folder of your own, which need not exist, or chmod 700 this one"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What the system says of the folder, as one of our errors."""
        try:
            yield
        except OSError as error:
            less = f", or set data.cache_bytes below {self.max_bytes}" if error.errno in FULL_DISK else ""
            told = f"{self.folder}, the cache of shards, cannot be used: {why(error)}{less}"
            raise DataError(told) from error


def _lock(path: Path, waits: bool) -> int:
    """The file at `path`, locked; a holder may remove it. Raises: BlockingIOError when it does not wait."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            if os.fstat(lock).st_nlink:  # else its holder removed it while this one waited
                return lock
            _raise_what_it_says(lock)
        except BaseException:  # also Ctrl-C, which must not leave it open; the error goes on
            os.close(lock)
            raise
        os.close(lock)


def _raise_what_it_says(lock: int) -> None:
    """What a store that is away told the holder of a lock: else each who waits would find out alone, one by
    one. Raises: StorageError, RefusedError."""
    kind, _, text = os.pread(lock, 1 << 16, 0).strip(b"\0").decode().partition(" ")
    if kind:
        raise (RefusedError if kind == RefusedError.__name__ else StorageError)(text)


def _touch(file: int | Path) -> None:
    """Note that a shard was used now; the system's own "now" is coarser than two reads."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))
