"""What only a store has: buckets, uploads in parts, requests in bulk, credentials."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import MissingError, RefusedError
from data_pipeline.s3 import objects, requests
from data_pipeline.storage import Storage
from tests.servers.process import Server
from tests.servers.s3 import forget_s3, unfinished_uploads, use_s3
from tests.servers.swift import BUCKETS, KEY, SECRET

MIB = 1 << 20


@pytest.fixture(params=BUCKETS)
def remote(request: pytest.FixtureRequest) -> Storage:
    return Storage(request.getfixturevalue(request.param) + "/root")


def begin_upload(storage: Storage, name: str) -> None:
    bucket, _, prefix = storage.root.removeprefix("s3://").partition("/")
    key = f"{prefix}/{name}"
    requests.filesystem(os.getpid()).call_s3("create_multipart_upload", Bucket=bucket, Key=key)


def test_folder_markers_are_no_files(s3_bucket: str) -> None:
    """Consoles make an empty object for a folder, its key ending in a slash."""
    storage = Storage(f"{s3_bucket}/root")
    storage.publish("a/b", b"")
    requests.filesystem(os.getpid()).call_s3("put_object", Bucket=s3_bucket[5:], Key="root/a/", Body=b"")
    assert [entry.name for entry in storage.walk()] == ["a/b"]
    assert storage.names("a") == ["b"]


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    storage = Storage("s3://no-such-bucket/root")
    for ask in (lambda: list(storage.walk()), lambda: storage.publish("a", b""), storage.names):
        with pytest.raises(MissingError, match=r"the bucket s3://no-such-bucket does not exist"):
            ask()
    with pytest.raises(MissingError, match="s3://No Bucket/a cannot exist"):
        Storage("s3://No Bucket").read("a")


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


def test_unfinished_uploads_below_the_root_are_ended(remote: Storage) -> None:
    other = Storage(remote.root + "-other")
    for name in ("a b", "deep/new+line%20"):
        begin_upload(remote, name)
    begin_upload(other, "a")
    assert sorted(unfinished_uploads(other)) == sorted(["root/a b", "root/deep/new+line%20", "root-other/a"])
    assert remote.abort_uploads("deep") == 1
    assert remote.abort_uploads() == 1
    assert unfinished_uploads(other) == ["root-other/a"]


def test_a_storage_can_be_used_after_a_fork(s3_bucket: str) -> None:
    storage = Storage(s3_bucket)
    storage.publish("a", b"hello")
    child = os.fork()
    if child == 0:
        os._exit(0 if storage.read("a") == b"hello" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
