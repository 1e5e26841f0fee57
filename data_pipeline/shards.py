"""The deterministic tar writer: plain WebDataset tars whose bytes depend on their members alone."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from data_pipeline.errors import DataError, why
from data_pipeline.format import (
    Member,
    ShardDone,
    done_name,
    encode_index,
    index_name,
    sha256,
    to_json,
)
from data_pipeline.storage import Storage


class ShardFile:
    """A tar being written on this machine: `add` samples, then `finish`; a context manager."""

    def __init__(self, path: Path) -> None:
        from webdataset.writer import TarWriter

        self.path = path
        self._written: list[tuple[str, str, str]] = []
        self._file = open(path, "wb")  # noqa: SIM115  # closed in __exit__
        self._tar = TarWriter(
            self._file, user="foreframe", group="foreframe", mode=0o444, mtime=0, encoder=False
        )

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append one sample, {suffix: bytes}, sorted by suffix. Raises: DataError on a full disk."""
        try:
            self._tar.write({"__key__": key, **members})
        except OSError as error:
            raise DataError(f"{self.path} could not be written: {why(error)}") from error
        self._written += [(key, suffix, sha256(data)) for suffix, data in sorted(members.items())]

    def finish(self) -> list[Member]:
        """Close the tar and read it back: its members in order, each with the offset of its bytes.

        Raises: DataError when the disk is full, or what is read differs from what was written.
        """
        try:
            self._tar.close()
            self._file.close()
            found = read_members(self.path)
        except OSError as error:
            raise DataError(f"{self.path} could not be written: {why(error)}") from error
        if [(m.key, m.suffix, m.sha256) for m in found] != self._written:
            raise DataError(
                f"{self.path} does not read back as it was written: its disk or memory is at fault"
            )
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(OSError):  # after a full disk, the buffered rest cannot be flushed either
            self._file.close()


def read_members(path: Path) -> list[Member]:
    """The members of a tar, their hashes taken from the file."""
    members = []
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, suffix = info.name.split(".", 1)
            file = tar.extractfile(info)
            assert file is not None
            members.append(Member(key, suffix, info.offset_data, info.size, sha256(file.read())))
    return members


def hash_file(path: Path) -> tuple[int, str]:
    """(size in bytes, sha256) of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def samples_in_tar(members: Iterable[Member]) -> dict[str, tuple[int, int]]:
    """(offset, size) in bytes of each sample's stretch of the tar: its members with their headers."""
    spans: dict[str, tuple[int, int]] = {}
    for member in members:
        start, end = member.offset - tarfile.BLOCKSIZE, member.offset + _blocks(member.size)
        first = spans.get(member.key, (start, 0))[0]
        spans[member.key] = (first, end - first)
    return spans


def members_digest(members: Iterable[Member]) -> str:
    """sha256 of what one sample holds: its suffixes and their hashes, not where they lie."""
    return sha256("\n".join(f"{member.suffix} {member.sha256}" for member in members).encode())


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def tar_end(size: int) -> bytes:
    """What closes a tar of `size` bytes of members: two empty blocks, filled up to a record."""
    return bytes(-(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - size)


def publish_records(
    storage: Storage,
    stem: str,
    split: str,
    tar: tuple[int, str],
    members: list[Member],
    plan_fingerprint: str,
) -> ShardDone:
    """Publish index and done record, in that order, of a shard whose tar is there.

    tar: its size in bytes and its sha256.
    """
    index = encode_index(members)
    done = ShardDone(
        stem=stem,
        split=split,
        num_samples=len({member.key for member in members}),
        tar_bytes=tar[0],
        tar_sha256=tar[1],
        index_sha256=sha256(index),
        plan_fingerprint=plan_fingerprint,
    )
    storage.publish(index_name(stem), index)
    storage.publish(done_name(stem), to_json(done))
    return done
