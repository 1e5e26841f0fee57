"""One behaviour on a local folder and on S3: whole or not at all, the right bytes, or one of our errors."""

from __future__ import annotations

import errno
import http.client
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, MissingError, RefusedError, StorageError, UsageError
from data_pipeline.s3 import objects, requests
from data_pipeline.storage import Storage, write_whole
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import MANY_BUCKET, MANY_NAMES, forget_s3, make_bucket, use_s3
from tests.servers.swift import KEY, SECRET

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
MIB = 1 << 20
SWIFT = pytest.param("swift", marks=pytest.mark.cluster)
BUCKETS = {"moto": "s3_bucket", "swift": "swift_bucket"}


@pytest.fixture(params=["local", "moto", SWIFT])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root on each kind of store."""
    if request.param == "local":
        return Storage(tmp_path / "root")
    return Storage(request.getfixturevalue(BUCKETS[request.param]) + "/root")


@pytest.fixture(params=["moto", SWIFT])
def remote(request: pytest.FixtureRequest) -> Storage:
    return Storage(request.getfixturevalue(BUCKETS[request.param]) + "/root")


@pytest.fixture
def faulty(faulty_bucket: str) -> Storage:
    """An empty root behind the `faults` proxy."""
    return Storage(f"{faulty_bucket}/root")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Timeouts of a second, so that a store that hangs is found out soon."""
    monkeypatch.setattr(requests, "READ_TIMEOUT_S", 1)
    monkeypatch.setattr(requests, "RETRY_FOR_S", 1.0)
    monkeypatch.setattr(requests, "LONGEST_PAUSE_S", 0.1)
    forget_s3()
    yield
    forget_s3()


@pytest.fixture
def steadfast(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts too, but time for many attempts on a loaded machine."""
    monkeypatch.setattr(requests, "RETRY_FOR_S", 30.0)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts of the smallest size that stores take."""
    monkeypatch.setattr(objects, "PART_BYTES", 5 * MIB)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(11 * MIB))
    return path


def unfinished_uploads(storage: Storage) -> list[str]:
    """Keys of uploads that were begun and not completed, as the store lists them."""
    bucket = storage.root.split("/")[2]
    found = requests.filesystem(os.getpid()).call_s3("list_multipart_uploads", Bucket=bucket)
    return [upload["Key"] for upload in found.get("Uploads", ())]


def begin_upload(storage: Storage, name: str) -> None:
    bucket, _, prefix = storage.root.removeprefix("s3://").partition("/")
    key = f"{prefix}/{name}"
    requests.filesystem(os.getpid()).call_s3("create_multipart_upload", Bucket=bucket, Key=key)


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


def test_folder_markers_are_no_files(s3_bucket: str) -> None:
    """Consoles make an empty object for a folder, its key ending in a slash."""
    storage = Storage(f"{s3_bucket}/root")
    storage.publish("a/b", b"")
    requests.filesystem(os.getpid()).call_s3("put_object", Bucket=s3_bucket[5:], Key="root/a/", Body=b"")
    assert [entry.name for entry in storage.walk()] == ["a/b"]
    assert storage.names("a") == ["b"]


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


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    storage = Storage("s3://no-such-bucket/root")
    for ask in (lambda: list(storage.walk()), lambda: storage.publish("a", b""), storage.names):
        with pytest.raises(MissingError, match=r"the bucket s3://no-such-bucket does not exist"):
            ask()
    with pytest.raises(MissingError, match="s3://No Bucket/a cannot exist"):
        Storage("s3://No Bucket").read("a")


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


def test_more_are_removed_than_one_request_takes(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BULK_NAMES", 3)
    storage = Storage(s3_bucket)
    for number in range(8):
        storage.publish(f"{number}", b"")
    storage.remove_many(f"{number}" for number in range(1, 8))
    assert storage.names() == ["0"]


def test_a_large_file_is_sent_in_parts(remote: Storage, large: Path, small_parts: None) -> None:
    remote.publish("large", large)
    assert remote.read("large") == large.read_bytes()
    assert remote.info("large").etag.endswith("-3")
    remote.publish("large", large.read_bytes()[1:])
    assert remote.info("large").size_bytes == 11 * MIB - 1
    assert unfinished_uploads(remote) == []


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


def test_unfinished_uploads_below_the_root_are_ended(remote: Storage) -> None:
    other = Storage(remote.root + "-other")
    for name in ("a b", "deep/new+line%20"):
        begin_upload(remote, name)
    begin_upload(other, "a")
    assert sorted(unfinished_uploads(other)) == sorted(["root/a b", "root/deep/new+line%20", "root-other/a"])
    assert remote.abort_uploads("deep") == 1
    assert remote.abort_uploads() == 1
    assert unfinished_uploads(other) == ["root-other/a"]


def test_a_local_folder_has_no_uploads(tmp_path: Path) -> None:
    assert Storage(tmp_path).abort_uploads() == 0


@pytest.mark.parametrize("fault", ["501", "403"])
def test_a_store_that_lists_no_uploads_is_no_error(faulty: Storage, faults: FaultProxy, fault: str) -> None:
    faults.inject(fault, "GET", "uploads", times=None)
    assert faulty.abort_uploads() == 0


def test_a_store_without_bulk_delete_is_asked_for_each(faulty: Storage, faults: FaultProxy) -> None:
    for name in "abc":
        faulty.publish(name, b"")
    faults.inject("501", "POST", "delete", times=None)
    faulty.remove_many("ac")
    assert faulty.names() == ["b"]
    assert faults.counts["POST", "delete"] == 1 and faults.counts["DELETE", "object"] == 2


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


def test_a_storage_can_be_used_after_a_fork(s3_bucket: str) -> None:
    storage = Storage(s3_bucket)
    storage.publish("a", b"hello")
    child = os.fork()
    if child == 0:
        os._exit(0 if storage.read("a") == b"hello" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("fault", "times"), [("503", 2), ("500", 1), ("reset", 2), ("hang", 1), ("short body", 1)]
)
def test_reading_comes_through_faults(
    faulty: Storage, faults: FaultProxy, steadfast: None, tmp_path: Path, fault: str, times: int
) -> None:
    faulty.publish("a", BODY)
    asks: list[Callable[[], bytes]] = [
        lambda: faulty.read("a"),
        lambda: faulty.read("a", 0, len(BODY)),
        lambda: faulty.read_many(["a", "a"])[1],
        lambda: b"".join(faulty.read_spans([("a", 0, 9), ("a", 9, len(BODY) - 9)])),
        lambda: (faulty.download("a", tmp_path / "copy"), (tmp_path / "copy").read_bytes())[1],
    ]
    for ask in asks:
        faults.inject(fault, "GET", times=times)
        before = faults.counts["GET", "object"]
        assert ask() == BODY
        assert faults.counts["GET", "object"] - before > times


@pytest.mark.parametrize("fault", ["503", "reset", "hang", "lost answer"])
@pytest.mark.parametrize(("method", "kind"), [("PUT", "part"), ("POST", "upload"), ("HEAD", "object")])
def test_an_upload_in_parts_comes_through_faults(
    faulty: Storage,
    faults: FaultProxy,
    steadfast: None,
    large: Path,
    small_parts: None,
    fault: str,
    method: str,
    kind: str,
) -> None:
    """POST is the upload's beginning and then its completion, whose answer may be lost once it is done."""
    for first in (1, 3) if kind != "object" else (1,):  # what is spoilt is asked again, so 3 is the second
        faults.inject(fault, method, kind, first=first)
    faulty.publish("large", large)
    assert faulty.read("large") == large.read_bytes()


@pytest.mark.parametrize("fault", ["503", "reset", "hang", "lost answer"])
def test_one_put_a_listing_and_a_removal_come_through_faults(
    faulty: Storage, faults: FaultProxy, steadfast: None, fault: str
) -> None:
    for method, kind in [("PUT", "object"), ("GET", "list"), ("POST", "delete"), ("DELETE", "object")]:
        faults.inject(fault, method, kind)
    for name in "abc":
        faulty.publish(name, BODY)
    assert [entry.name for entry in faulty.walk()] == ["a", "b", "c"]
    faulty.remove_many(["b"])
    faulty.remove("c")
    assert faulty.names() == ["a"]
    assert faulty.read("a") == BODY


@pytest.mark.parametrize("fault", ["503", "reset", "hang"])
def test_a_store_that_stays_broken_is_reported_and_shows_nothing(
    faulty: Storage, faults: FaultProxy, impatient: None, large: Path, small_parts: None, fault: str
) -> None:
    told = (
        r"^s3://\S+ the store does not answer as it should \(.+\); tried [1-9]\d* times in \d+ s\. Check AWS_"
    )
    for ask, method, kind in (
        (lambda: faulty.publish("small", BODY), "PUT", "object"),
        (lambda: faulty.publish("large", large), "PUT", "part"),
        (lambda: list(faulty.walk()), "GET", "list"),
        (lambda: faulty.read_spans([("a", 0, 1), ("a", 1, 1)]), "GET", "object"),
    ):
        faults.inject(fault, method, kind, times=None)
        with pytest.raises(StorageError, match=told) as caught:
            ask()
        assert str(caught.value).endswith("the same command goes on from here")
        assert "\n" not in str(caught.value)
        faults.heal()
    assert list(faulty.walk()) == []
    assert unfinished_uploads(faulty) == []


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux's TCP_USER_TIMEOUT")
def test_a_store_that_takes_no_bytes_is_reported(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        use_s3(monkeypatch, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(StorageError, match="s3://bucket/a: the store does not answer"):
            Storage("s3://bucket").publish("a", bytes(16 * MIB))
    forget_s3()


def test_a_large_download_goes_on_where_it_broke_off(
    faulty: Storage, faults: FaultProxy, tmp_path: Path, steadfast: None
) -> None:
    """Every answer is cut in half, down to the last byte: who begins anew each time never gets there."""
    body = os.urandom(1 << 14)
    faulty.publish("a", body)
    faults.inject("short body", "GET", times=None)
    faulty.download("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == body


def test_an_object_written_anew_while_it_is_read_is_read_anew(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    faulty.publish("a", BODY)
    faults.inject("short body", "GET")
    after = BODY[::-1]

    def write_anew(method: str, _: str) -> None:
        if (method, faults.counts["GET", "object"]) == ("GET", 1):
            faults.before = None
            threading.Thread(target=faulty.publish, args=("a", after)).start()
            while faults.counts["HEAD", "object"] < 2:  # it is looked at when it is there
                time.sleep(0.01)

    faults.before = write_anew
    faulty.download("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == after


def test_an_object_that_is_kept_shorter_than_sent_is_removed(
    faulty: Storage, faults: FaultProxy, s3_server: str
) -> None:
    def truncate(method: str, _: str) -> None:
        if method == "HEAD":
            faults.before = None
            bucket = faulty.root.split("/")[2]
            connection = http.client.HTTPConnection(s3_server.removeprefix("http://"))
            connection.request("PUT", f"/{bucket}/root/a", BODY[:100], {"Authorization": "AWS test:test"})
            assert connection.getresponse().status == 200
            connection.close()

    faults.before = truncate
    with pytest.raises(StorageError, match=r"root/a: the store kept 100 of 10240 bytes"):
        faulty.publish("a", BODY)
    assert not faulty.exists("a")


def test_a_listing_is_one_request_for_each_thousand_objects(faulty_bucket: str, faults: FaultProxy) -> None:
    found = [entry.name for entry in Storage(f"s3://{MANY_BUCKET}").walk()]
    assert found == sorted(MANY_NAMES) and len(found) == 2500
    assert faults.counts == {("GET", "list"): 3}


def test_each_call_costs_the_requests_that_it_needs(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    costs: list[tuple[Callable[[], Any], dict[tuple[str, str], int]]] = [
        (lambda: faulty.publish("a", BODY), {("PUT", "object"): 1, ("HEAD", "object"): 1}),
        (lambda: faulty.read("a"), {("GET", "object"): 1}),
        (lambda: faulty.read("a", 3, 4), {("GET", "object"): 1}),
        (lambda: faulty.read_many(["a"] * 20), {("GET", "object"): 20}),
        (lambda: faulty.read_spans([("a", 3, 4)] * 20), {("GET", "object"): 20}),
        (lambda: faulty.download("a", tmp_path / "copy"), {("GET", "object"): 1}),
        (lambda: faulty.exists("a"), {("HEAD", "object"): 1}),
        (lambda: faulty.exists("b"), {("HEAD", "object"): 1}),
        (lambda: faulty.names(), {("GET", "list"): 1}),
        (lambda: faulty.remove("a"), {("DELETE", "object"): 1}),
        (lambda: faulty.remove_many("abc"), {("POST", "delete"): 1}),
        (lambda: faulty.abort_uploads(), {("GET", "uploads"): 1}),
    ]
    for ask, cost in costs:
        faults.counts.clear()
        ask()
        assert faults.counts == cost


def test_without_credentials_the_settings_are_named(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, .* AWS_ENDPOINT_URL"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_s3()
    with pytest.raises(RefusedError, match=rf"root/a: .*[Uu]nable to locate credentials.*{settings}"):
        Storage(f"{s3_bucket}/root").read("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    forget_s3()
    with pytest.raises(RefusedError, match=rf"\(nobody\).*|nobody.*{settings}"):
        Storage(f"{s3_bucket}/root").read("a")


def test_an_endpoint_that_is_no_address_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "http://ann:hunter2@no host/")
    with pytest.raises(RefusedError, match=r"cannot be asked.*AWS_ENDPOINT_URL") as told:
        Storage("s3://bucket").read("a")
    assert "hunter2" not in str(told.value)
    forget_s3()


def test_a_dead_endpoint_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    use_s3(monkeypatch, "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(StorageError, match="does not answer") as told:
        Storage("s3://bucket").read("a")
    assert "hunter2" not in str(told.value)
    forget_s3()


@pytest.mark.cluster
@pytest.mark.parametrize(("key", "secret"), [(KEY, "wrong-hunter2"), ("nobody:at-all", SECRET)])
def test_wrong_credentials_are_refused_and_not_shown(
    swift_server: Server,
    swift_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    secret: str,
    tmp_path: Path,
) -> None:
    use_s3(monkeypatch, swift_server.endpoint, key, secret)
    storage = Storage(f"{swift_bucket}/root")
    asks: list[Callable[[], Any]] = [
        lambda: storage.read("a"),
        lambda: storage.exists("a"),
        lambda: storage.publish("a", b""),
        lambda: storage.download("a", tmp_path / "copy"),
        lambda: list(storage.walk()),
        lambda: storage.remove("a"),
        lambda: storage.remove_many(["a"]),
    ]
    for ask in asks:
        with pytest.raises(
            RefusedError, match=r"the store refused access .*AWS_PROFILE.*AWS_ENDPOINT_URL"
        ) as told:
            ask()
        assert secret not in str(told.value)


@pytest.fixture
def swift_proxy(swift_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before Swift, with the AWS settings to reach it; Swift runs again afterwards."""
    proxy = FaultProxy(swift_server.endpoint)
    use_s3(monkeypatch, proxy.endpoint, KEY, SECRET)
    yield proxy
    proxy.close()
    forget_s3()
    if not swift_server.is_alive:
        swift_server.start()


@pytest.mark.cluster
def test_a_store_killed_amid_an_upload_shows_nothing_of_it(
    swift_server: Server, swift_proxy: FaultProxy, large: Path, small_parts: None, impatient: None
) -> None:
    storage = Storage(f"{make_bucket()}/root")
    storage.publish("before", BODY)

    def kill(_: str, kind: str) -> None:
        if kind == "part" and swift_proxy.counts["PUT", "part"] == 2:
            swift_server.kill()

    swift_proxy.before = kill
    with pytest.raises(StorageError, match="root/large: the store does not answer"):
        storage.publish("large", large)
    swift_proxy.before = None
    swift_server.start()
    assert not storage.exists("large")
    assert [entry.name for entry in storage.walk()] == ["before"]
    assert storage.abort_uploads() == 1
    storage.publish("large", large)
    assert storage.read_many(["large", "before"]) == [large.read_bytes(), BODY]
    assert unfinished_uploads(storage) == []


@pytest.mark.cluster
def test_an_upload_outlasts_a_store_that_is_killed_and_comes_back(
    swift_server: Server, swift_proxy: FaultProxy, large: Path, small_parts: None
) -> None:
    storage = Storage(f"{make_bucket()}/root")
    killed = threading.Event()

    def kill(_: str, kind: str) -> None:
        if kind == "part" and swift_proxy.counts["PUT", "part"] == 1 and not killed.is_set():
            swift_server.kill()
            killed.set()

    swift_proxy.before = kill
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(storage.publish, "large", large)
        assert killed.wait(60)
        while swift_proxy.counts["PUT", "part"] < 5:  # some were refused
            time.sleep(0.01)
        swift_server.start()
        publishing.result()
    assert storage.read("large") == large.read_bytes()


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
