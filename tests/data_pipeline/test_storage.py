"""One behaviour on a local folder and on S3: whole or not at all, the right bytes, or one of our errors."""

from __future__ import annotations

import errno
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, MissingError, UsageError
from data_pipeline.storage import Storage, write_whole
from tests.servers.swift import BUCKETS

BODY = bytes(range(256)) * 40
NAMES = [
    "plain.tar",
    "deep/er/a b.mp4",
    'it\'s "quoted".mp4',
    "50% off #1?.mp4",
    "a+b&c=d.mp4",
    "käse/視頻.mp4",
    "two\nlines.mp4",
    "v?versionId=7",
    "back\\slash",
]


@pytest.fixture(params=["local", *BUCKETS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root on each kind of store."""
    if request.param == "local":
        return Storage(tmp_path / "root")
    return Storage(request.getfixturevalue(request.param) + "/root")


def test_names_come_back_as_they_were_written(
    storage: Storage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_moto = "moto" in request.node.callspec.id  # whose routes do not match a newline
    names = sorted((name for name in NAMES if not (is_moto and "\n" in name)), key=str.encode)
    for name in names:
        storage.publish(name, name.encode())
    assert [entry.name for entry in storage.walk()] == names
    assert storage.read_many(names) == [name.encode() for name in names]
    for name in names:
        folder, _, base = name.rpartition("/")
        assert base in storage.names(folder)
        storage.download(name, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == name.encode()
        assert storage.exists(name)
    storage.remove_many(names[1:])
    assert [entry.name for entry in storage.walk()] == names[:1]


def test_a_range_is_the_slice_of_the_whole(storage: Storage) -> None:
    storage.publish("a", BODY)
    for start, size in [(0, 10), (100, 1), (9990, 250), (7, None), (0, None), (3, 0), (10240, 0)]:
        assert storage.read("a", start, size) == BODY[start : None if size is None else start + size]


def test_a_range_past_the_end_is_a_file_cut_short(storage: Storage) -> None:
    storage.publish("a", BODY)
    for start in (10239, 10240, 50000):
        told = f"root/a is cut short: {max(0, 10240 - start)} of 5 bytes at offset {start}"
        with pytest.raises(DataError, match=told):
            storage.read("a", start, 5)


def test_many_are_read_in_the_order_they_were_named(storage: Storage) -> None:
    for number in range(40):
        storage.publish(f"n/{number}", b"%d" % number)
    wanted = [7, 3, *range(39, 0, -1), 3]
    assert storage.read_many(f"n/{number}" for number in wanted) == [b"%d" % number for number in wanted]
    with pytest.raises(MissingError, match="root/n/40"):
        storage.read_many(["n/1", "n/40", "n/2"])
    assert storage.read_many([]) == []


def test_spans_are_the_slices_in_the_order_they_were_named(storage: Storage) -> None:
    bodies = {f"n/{number}": BODY[number:] for number in range(3)}
    for name, body in bodies.items():
        storage.publish(name, body)
    rng = random.Random(0)
    spans = [(f"n/{rng.randrange(3)}", rng.randrange(10_000), rng.randrange(200)) for _ in range(50)]
    spans += [("n/1", 5, 10), ("n/1", 15, 7), ("n/0", 0, 10240), ("n/1", 22, 0), ("n/1", 5, 10)]
    expected = [bodies[name][start : start + size] for name, start, size in spans]
    assert storage.read_spans(spans) == expected
    assert storage.read_spans([]) == []


def test_one_span_cut_short_or_missing_is_told(storage: Storage) -> None:
    storage.publish("a", BODY)
    for start in (10239, 10240, 50000):
        told = f"root/a is cut short: {max(0, 10240 - start)} of 5 bytes at offset {start}"
        with pytest.raises(DataError, match=told):
            storage.read_spans([("a", 0, 5), ("a", start, 5), ("a", 3, 5)])
    with pytest.raises(MissingError, match="root/gone"):
        storage.read_spans([("a", 0, 5), ("gone", 0, 5)])


def test_a_local_file_is_opened_once_for_spans_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, opened = Storage(tmp_path), []
    for name in "ab":
        storage.publish(name, BODY)

    def watched(path: str, mode: str) -> Any:
        opened.append(Path(path).name)
        return open(path, mode)

    monkeypatch.setattr("data_pipeline.storage.open", watched, raising=False)
    storage.read_spans([("a", 9, 2), ("a", 0, 3), ("b", 1, 1), ("b", 2, 1), ("a", 5, 5)])
    assert opened == ["a", "b", "a"]


def test_a_walk_tells_of_every_file_in_the_order_of_the_bytes(storage: Storage) -> None:
    sizes = {"b": 3, "a/b": 1, "a.txt": 2, "a/c/d": 0, "a-b/x": 4, "z/y": 5, "ab": 6, "å": 7}
    for name, size in sizes.items():
        storage.publish(name, bytes(size))
    found = list(storage.walk())
    assert [(entry.name, entry.size_bytes) for entry in found] == sorted(
        sizes.items(), key=lambda item: item[0].encode()
    )
    assert [entry.name for entry in storage.walk("a")] == ["a/b", "a/c/d"]
    assert storage.names() == sorted(["b", "a.txt", "ab", "å"])
    assert storage.names("a") == ["b"]
    assert list(storage.walk("none")) == [] and storage.names("none") == []
    for entry in found:
        info = storage.info(entry.name)
        assert (info.name, info.size_bytes, info.etag) == (entry.name, entry.size_bytes, entry.etag)
        assert abs(info.mtime_ns - entry.mtime_ns) <= 10**9
        assert bool(info.etag) is not storage.is_local


def test_a_walk_follows_no_link_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"12")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert [(entry.name, entry.size_bytes) for entry in Storage(tmp_path).walk()] == [
        ("a/file", 2),
        ("link", 2),
    ]


def test_the_root_exists_once_something_is_in_it(storage: Storage) -> None:
    assert not storage.exists() and not storage.exists("a")
    storage.publish("a/b", b"")
    assert storage.exists() and storage.exists("a/b") and not storage.exists("a/c")


@pytest.mark.parametrize("ask", ["read", "info", "download", "read_many", "read_spans"])
def test_what_is_not_there_is_missing(storage: Storage, ask: str, tmp_path: Path) -> None:
    target = tmp_path / "here" / "target"
    target.parent.mkdir()
    many = {"download": ("gone", target), "read_many": (["gone"],), "read_spans": ([("gone", 0, 1)],)}
    asked = many.get(ask, ("gone",))
    with pytest.raises(MissingError, match=r"root/gone .*(No such file|no such object)"):
        getattr(storage, ask)(*asked)
    assert list(target.parent.iterdir()) == []


def test_a_failed_download_keeps_the_file_that_was_there(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "here" / "target"
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(MissingError):
        storage.download("gone", target)
    assert target.read_bytes() == b"before"
    storage.publish("a", b"after")
    storage.download("a", target)
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"after"]


def test_an_object_that_vanishes_after_its_listing_is_missing(storage: Storage, tmp_path: Path) -> None:
    storage.publish("a", BODY)
    (entry,) = storage.walk()
    storage.remove(entry.name)
    with pytest.raises(MissingError, match="root/a"):
        storage.download(entry.name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_removing_what_is_not_there_is_no_error(storage: Storage) -> None:
    names = [f"n/{number}" for number in range(12)]
    for name in [*names, "kept"]:
        storage.publish(name, b"")
    storage.remove_many(["gone", *names[:6], "gone too"])
    for name in names[6:]:
        storage.remove(name)
    storage.remove("gone")
    assert [entry.name for entry in storage.walk()] == ["kept"]
    storage.remove_many([])


@pytest.mark.parametrize("name", ["a", "deep/er/a.tar"])
def test_what_is_written_is_published_when_the_block_ends(storage: Storage, name: str) -> None:
    with storage.writing(name) as path:
        path.write_bytes(BODY)
        inode = path.stat().st_ino
        assert not storage.exists(name)
    assert storage.read(name) == BODY
    assert not path.exists()
    assert [entry.name for entry in storage.walk()] == [name]
    if storage.is_local:
        target = storage.local_path(name)
        assert path.parent == target.parent and path.suffix == ".part"
        assert target.stat().st_ino == inode  # renamed: a copy would write every shard twice


def test_a_block_that_fails_publishes_nothing(storage: Storage) -> None:
    storage.publish("a", b"before")
    paths = []

    def fail(error: Exception) -> None:
        with storage.writing("a") as path:
            paths.append(path)
            path.write_bytes(b"half")
            raise error

    with pytest.raises(KeyError, match="mine"):
        fail(KeyError("mine"))
    with pytest.raises(FileNotFoundError, match="of another file"):
        fail(FileNotFoundError("of another file"))
    assert not any(path.exists() for path in paths)
    assert storage.read("a") == b"before"
    assert [entry.name for entry in storage.walk()] == ["a"]


def test_a_local_folder_has_no_uploads(tmp_path: Path) -> None:
    assert Storage(tmp_path).abort_uploads() == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", ".."])
def test_a_name_that_leaves_the_root_is_refused(tmp_path: Path, name: str) -> None:
    asks: list[Callable[[Storage], Any]] = [
        lambda s: s.read(name),
        lambda s: s.read_many([name]),
        lambda s: s.read_spans([("a", 0, 1), (name, 0, 1)]),
        lambda s: s.info(name),
        lambda s: s.exists(name),
        lambda s: s.download(name, tmp_path / "x"),
        lambda s: list(s.walk(name)),
        lambda s: s.names(name),
        lambda s: s.publish(name, b""),
        lambda s: s.writing(name).__enter__(),
        lambda s: s.remove(name),
        lambda s: s.remove_many([name]),
        lambda s: s.abort_uploads(name),
    ]
    for root in (str(tmp_path), "s3://bucket/root"):
        for ask in asks:
            with pytest.raises(DataError, match="leaves the folder"):
                ask(Storage(root))


@pytest.mark.parametrize(
    "root",
    ["s3://key:hunter2@bucket/a", "s3://key:hun/ter2@bucket/a", "s3://hunter2@bucket", "gs://key:hunter2@b"],
)
def test_credentials_in_an_address_are_refused_and_not_shown(root: str) -> None:
    with pytest.raises(UsageError, match=r"holds credentials.*AWS_ACCESS_KEY_ID") as told:
        Storage(root)
    assert not any(part in str(told.value) for part in ("hun", "ter2", "key:"))


@pytest.mark.parametrize("root", ["gs://bucket/a", "s3://", "s3:///a", "file:///tmp"])
def test_other_stores_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match=r"no place for data: name a folder, or s3://bucket/prefix"):
        Storage(root)


def test_a_storage_can_be_sent_to_a_fresh_process(storage: Storage) -> None:
    storage.publish("a", b"hello")
    storage.read("a")  # so that there is a connection, which must not go along
    script = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(s.read('a').decode(), s.names())"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(storage),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ended.stdout.decode() == "hello ['a']\n", ended.stderr.decode()


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
    with (
        pytest.raises(DataError, match=r"nothing was published: No space left on device: make room there"),
        Storage(tmp_path).writing("a") as path,
    ):
        path.write_bytes(b"after")
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
