"""A store that stumbles, stays away or is killed; and how many requests each call takes of it."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import StorageError
from data_pipeline.s3 import requests
from data_pipeline.storage import Storage
from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import MANY_BUCKET, MANY_NAMES, forget_s3, make_bucket, unfinished_uploads, use_s3

BODY = bytes(range(256)) * 40
MIB = 1 << 20


@pytest.fixture
def faulty(faulty_bucket: str) -> Storage:
    """An empty root behind the `faults` proxy."""
    return Storage(f"{faulty_bucket}/root")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Timeouts of a second, so that a store that hangs is found out soon; one answer may be late."""
    monkeypatch.setattr(requests, "READ_TIMEOUT_S", 1)
    monkeypatch.setattr(requests, "RETRY_FOR_S", 3.0)
    monkeypatch.setattr(requests, "LONGEST_PAUSE_S", 0.1)
    forget_s3()
    yield
    forget_s3()


@pytest.fixture
def steadfast(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts too, but time for many attempts on a loaded machine."""
    monkeypatch.setattr(requests, "RETRY_FOR_S", 30.0)


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


def test_a_dead_endpoint_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    use_s3(monkeypatch, "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(StorageError, match="does not answer") as told:
        Storage("s3://bucket").read("a")
    assert "hunter2" not in str(told.value)
    forget_s3()


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
