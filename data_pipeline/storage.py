"""Files under one root, local or s3://, read in ranges and published whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from data_pipeline.errors import DataError, MissingError, UsageError, why
from data_pipeline.scratch import scratch_folder

if TYPE_CHECKING:
    from data_pipeline.s3.objects import Objects


UNPUBLISHED = "written, nothing was published"
COPY_BYTES = 16 << 20
Moved = Callable[[int], None]
"""Called with the number of bytes that were just copied or sent, so that one can see that it moves."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or object as it was listed.

    name: relative to the root; mtime_ns: since 1970, and on S3 rounded as the store likes, in a listing
    perhaps otherwise than in `info`; etag: S3's word for its content, empty for a local file.
    """

    name: str
    size_bytes: int
    mtime_ns: int
    etag: str


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk: after a rename, so that it outlives a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """This process's umask, which can only be read by setting it: Linux tells it without."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^Umask:\s*([0-7]+)$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _beside(target: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A new empty file next to `target`, renamed to it when the block ends well, else removed.

    is_durable: first brought to disk, so that the name never stands for less after a loss of power.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if is_durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets only the owner read
        os.replace(temporary, target)
    except BaseException:  # nothing half-written stays, whatever it was; the error goes on
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_folder(target.parent)


def _unseen(_: int) -> None:
    pass


def _copy(source: IO[bytes], target: IO[bytes], moved: Moved) -> None:
    while block := source.read(COPY_BYTES):
        target.write(block)
        moved(len(block))


def check_takes(folder: Path, name: str = "") -> None:
    """Find out before long work whether its result can be written; the folder is made where there is none.

    name: of the file that will be written into it. Raises: OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name and (folder / name).is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    with tempfile.NamedTemporaryFile(prefix=f".{name}.", suffix=".part", dir=folder):
        pass


def open_regular(path: Path) -> IO[bytes]:
    """Open a file of a folder that others write to: a pipe or a device there may never end.

    Raises: OSError, also for what is no regular file.
    """
    # Without O_NONBLOCK the opening of a pipe waits for somebody who writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        reason = os.strerror(code) if stat.S_ISDIR(mode) else "it is no regular file"
        raise OSError(code, reason, str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: Path) -> bytes:
    """What a regular file holds. Raises: OSError, also for what is none."""
    with open_regular(path) as file:
        return file.read()


def write_whole(target: Path, data: bytes | Path, moved: Moved = _unseen) -> None:
    """Write `data` (bytes, or a file to copy) beside, fsync, rename: the old file or the new, never half.

    Nothing else is left behind.

    Raises: OSError.
    """
    with _beside(target) as temporary:
        if isinstance(data, bytes):
            temporary.write_bytes(data)
            return
        with open(data, "rb") as source, open(temporary, "wb") as file:
            _copy(source, file, moved)


class Storage:
    """A folder or an s3:// prefix; names are relative, with forward slashes.

    S3 is asked again for up to a minute, and credentials and endpoints are the usual AWS settings. It can be
    pickled. Raises from every method, with the full address: MissingError (not there), RefusedError (S3's
    credentials), StorageError (S3 does not answer), DataError (a name that leaves the root, a full disk …).
    """

    def __init__(self, root: str | Path) -> None:
        self.is_local = "://" not in str(root)
        self.root = str(root).rstrip("/")
        self._remote = None if self.is_local else _objects(str(root))

    def address(self, name: str) -> str:
        """The full path or uri of `name`; refuses names that leave the root."""
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{name!r} leaves the folder {self.root}; names in a data set are relative")
        return f"{self.root}/{name}" if name else self.root

    def local_path(self, name: str = "") -> Path | None:
        """The path of `name` on this machine, or None on a remote store."""
        return Path(self.address(name)) if self.is_local else None

    def exists(self, name: str = "") -> bool:
        """Whether there is a file `name`; without a name, whether there is the root."""
        address = self.address(name)
        if self._remote:
            return self._remote.exists(name)
        with _local(address, "read"):
            return Path(address).exists()

    def info(self, name: str) -> Entry:
        """Size and age of `name`; follows links."""
        address = self.address(name)
        if self._remote:
            return self._remote.info(name)
        with _local(address, "read"):
            found = os.stat(address)
        return Entry(name, found.st_size, found.st_mtime_ns, "")

    def read(self, name: str, start: int | None = None, size: int | None = None) -> bytes:
        """The bytes of `name`, whole or `size` bytes from `start`.

        Raises: DataError also when the file is shorter than asked for.
        """
        address = self.address(name)
        if self._remote:
            data = self._remote.read(name, start, size)
        else:
            with _local(address, "read"), open(address, "rb") as file:
                file.seek(start or 0)
                data = file.read() if start is None else file.read(size)
        return data if size is None else _uncut(address, data, start or 0, size)

    def read_many(self, names: Iterable[str]) -> list[bytes]:
        """The bytes of each of `names`, whole and in their order; remotely several come at once."""
        wanted = list(names)
        if not self._remote:
            return [self.read(name) for name in wanted]
        for name in wanted:
            self.address(name)
        return self._remote.read_many(wanted)

    def read_spans(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of each span (name, start, size), in their order; remotely several come at once.

        Locally a file is opened once for the spans of it that follow each other.
        Raises: DataError also when a file ends before a span does.
        """
        addresses = {name: self.address(name) for name, _, _ in spans}
        if self._remote:
            found = self._remote.read_spans(spans)
            return [
                _uncut(addresses[name], data, start, size)
                for (name, start, size), data in zip(spans, found, strict=True)
            ]
        found = []
        for name, some in groupby(spans, key=lambda span: span[0]):
            with _local(addresses[name], "read"), open(addresses[name], "rb") as file:
                for _, start, size in some:
                    file.seek(start)
                    found.append(_uncut(addresses[name], file.read(size), start, size))
        return found

    def download(self, name: str, target: Path, moved: Moved = _unseen) -> None:
        """Copy `name` to the local path `target`, whole or not at all."""
        address = self.address(name)
        with _local(str(target), "written"), _beside(target, is_durable=False) as temporary:
            if self._remote:
                with open(temporary, "wb") as file:
                    self._remote.download(name, file, moved)
                return
            with _local(address, "read"):
                source = open(address, "rb")  # noqa: SIM115  so that only its errors are those of reading
            with source, open(temporary, "wb") as file:
                _copy(source, file, moved)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in `folder`, sorted; empty when it does not exist."""
        address = self.address(folder)
        if self._remote:
            return sorted(self._remote.names(folder))
        path = Path(address)
        with _local(address, "listed"):
            return sorted(p.name for p in path.iterdir() if p.is_file()) if path.is_dir() else []

    def walk(self, folder: str = "") -> Iterator[Entry]:
        """Every file below `folder`, in the order of the bytes of their names; none when it does not exist.

        Remotely one listing, a request for each thousand objects. Locally, links to folders are not followed,
        and links to nothing are left out.
        """
        address = self.address(folder)
        if self._remote:
            yield from self._remote.walk(folder)
            return
        with _local(address, "listed"):
            yield from _walk(address, f"{folder}/" if folder else "")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to, published as `name` when the block ends well, and removed otherwise.

        Locally it lies in the target's folder and is renamed, not copied; remotely in a scratch folder.
        Errors of the block itself go on as they are.
        """
        address = self.address(name)
        with ExitStack() as stack:
            if self._remote:
                path = stack.enter_context(scratch_folder()) / f"file{PurePosixPath(name).suffix}"
                yield path
                self.publish(name, path)
                return
            with _local(address, UNPUBLISHED):
                target = Path(address)
                target.parent.mkdir(parents=True, exist_ok=True)
                path = stack.enter_context(_beside(target))
            yield path
            with _local(address, UNPUBLISHED):
                stack.close()

    def publish(self, name: str, data: bytes | Path, moved: Moved = _unseen) -> None:
        """Write `data` (bytes, or a local file to copy) under `name`, whole or not at all.

        Locally as `write_whole` does it. Remotely an object shows when it is whole: one request, or for large
        files an upload in parts; then its size is compared with what was sent.
        """
        address = self.address(name)
        with _local(address, UNPUBLISHED):
            if self._remote:
                self._remote.put(name, data, moved)
                return
            target = Path(address)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, data, moved)

    def remove(self, name: str) -> None:
        """Delete `name`; a missing one is no error."""
        address = self.address(name)
        if self._remote:
            self._remote.remove(name)
            return
        with _local(address, "removed"):
            Path(address).unlink(missing_ok=True)

    def remove_many(self, names: Iterable[str]) -> None:
        """Delete all of `names`, remotely a thousand in a request; missing ones are no error."""
        wanted = list(names)
        if not self._remote:
            for name in wanted:
                self.remove(name)
            return
        for name in wanted:
            self.address(name)
        self._remote.remove_many(wanted)

    def abort_uploads(self, folder: str = "") -> int:
        """End the unfinished uploads below `folder` that killed jobs left, and say how many there were.

        They are paid for and cannot be seen. Uploads of jobs that still run are ended too: call it where no
        other job writes. A store that cannot list them is no error.
        """
        self.address(folder)
        return self._remote.abort_uploads(folder) if self._remote else 0


def _objects(root: str) -> Objects:
    protocol, _, rest = root.partition("://")
    bucket = rest.partition("/")[0]
    if "@" in bucket or ":" in bucket:  # a secret may hold a slash
        raise UsageError(
            f"the address {protocol}://… holds credentials, which would end up in records and logs: give "
            f"them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an AWS_PROFILE, and name s3://bucket/prefix"
        )
    if protocol != "s3" or not bucket:
        raise UsageError(f"{root} is no place for data: name a folder, or s3://bucket/prefix")
    from data_pipeline.s3.objects import Objects  # a second of imports, which a local run need not wait for

    return Objects(root.rstrip("/"))


def _uncut(address: str, data: bytes, start: int, size: int) -> bytes:
    """What was read of a file, if it is all that was asked for. Raises: DataError."""
    if len(data) != size:
        raise DataError(f"{address} is cut short: {len(data)} of {size} bytes at offset {start}")
    return data


@contextmanager
def _local(address: str, verb: str) -> Iterator[None]:
    """What the system says of a local path, as one of our errors."""
    try:
        yield
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError) and verb == "read"
        raise (MissingError if is_missing else DataError)(
            f"{address} could not be {verb}: {why(error)}"
        ) from error


def _walk(folder: str, prefix: str) -> Iterator[Entry]:
    """Files below `folder`, their names with `prefix`; a folder sorts as its name with a slash, as on S3."""
    try:
        found = [(f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in os.scandir(folder)]
    except FileNotFoundError:
        return
    for name, entry in sorted(found, key=lambda each: os.fsencode(each[0])):
        if name.endswith("/"):
            yield from _walk(entry.path, prefix + name)
        elif entry.is_file():
            stat = entry.stat()
            yield Entry(prefix + name, stat.st_size, stat.st_mtime_ns, "")
