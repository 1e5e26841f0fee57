"""Writing whole files or none, on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage import Storage, write_whole


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays as it was; nothing is left that a later run would stumble over."""
    write_whole(tmp_path / "a", b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data_pipeline.storage.os.fsync", full)
    with pytest.raises(DataError, match=r"nothing was published: No space left on device: make room there"):
        Storage(tmp_path).publish("a", b"after")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "b", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_is_as_readable_as_the_umask_lets_it_be(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a", b"")
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode
        assert os.umask(umask) == umask  # and it is as it was
    finally:
        os.umask(before)
