"""Files under one root, local or s3://, read in ranges and published whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, why


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


def write_whole(target: Path, data: bytes | Path) -> None:
    """Write `data` (bytes, or a file to copy) beside, fsync, rename: the old file or the new, never half.

    Nothing else is left behind.

    Raises: OSError.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                with open(data, "rb") as source:
                    while block := source.read(1 << 20):
                        file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets only the owner read
        os.replace(temporary, target)
    except BaseException:  # nothing half-written stays, whatever it was; the error goes on
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


class Storage:
    """A folder or an s3:// prefix; names are relative, with forward slashes.

    Reading raises DataError with the full address; nothing here retries.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/")
        self.is_local = "://" not in self.root
        if self.is_local:
            self._fs: Any = None
        else:
            import fsspec

            self._fs = fsspec.filesystem(self.root.split("://", 1)[0])

    def address(self, name: str) -> str:
        """The full path or uri of `name`; refuses names that leave the root."""
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{name!r} leaves the folder {self.root}; names in a data set are relative")
        return f"{self.root}/{name}" if name else self.root

    def local_path(self, name: str = "") -> Path | None:
        """The path of `name` on this machine, or None on a remote store."""
        return Path(self.address(name)) if self.is_local else None

    def exists(self, name: str = "") -> bool:
        if self.is_local:
            return Path(self.address(name)).exists()
        return bool(self._fs.exists(self.address(name)))

    def read(self, name: str, start: int | None = None, size: int | None = None) -> bytes:
        """The bytes of `name`, whole or `size` bytes from `start`.

        Raises: DataError when the file is missing or shorter than asked for.
        """
        try:
            if self.is_local:
                with open(self.address(name), "rb") as file:
                    if start is None:
                        return file.read()
                    file.seek(start)
                    data = file.read(size)
            else:
                end = None if start is None or size is None else start + size
                data = self._fs.cat_file(self.address(name), start=start, end=end)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.address(name)} could not be read: {reason}") from error
        if size is not None and len(data) != size:
            raise DataError(
                f"{self.address(name)} is cut short: {len(data)} of {size} bytes at offset {start}"
            )
        return bytes(data)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in `folder`, sorted; empty when it does not exist."""
        if self.is_local:
            path = Path(self.address(folder))
            found = [p.name for p in path.iterdir() if p.is_file()] if path.is_dir() else []
        else:
            try:
                entries = self._fs.ls(self.address(folder), detail=True)
            except FileNotFoundError:
                entries = []
            found = [e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "file"]
        return sorted(found)

    def publish(self, name: str, data: bytes | Path) -> None:
        """Write `data` (bytes, or a local file to copy) under `name`, whole or not at all.

        Locally as `write_whole` does it. Remotely: one put of a complete body, since an object store shows
        an object only when it is whole.
        Raises: DataError with the reason (no space left, no permission).
        """
        address = self.address(name)
        try:
            if not self.is_local:
                if isinstance(data, bytes):
                    self._fs.pipe_file(address, data)
                else:
                    self._fs.put_file(str(data), address)
                return
            target = Path(address)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, data)
        except OSError as error:
            raise DataError(f"{address} could not be written, nothing was published: {why(error)}") from error

    def remove(self, name: str) -> None:
        """Delete `name`; a missing one is no error."""
        if self.is_local:
            Path(self.address(name)).unlink(missing_ok=True)
        elif self._fs.exists(self.address(name)):
            self._fs.rm_file(self.address(name))
