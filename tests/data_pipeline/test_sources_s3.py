import os
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError, UsageError
from data_pipeline.s3.requests import filesystem
from data_pipeline.sources import Listing, list_sources
from data_pipeline.storage import Storage
from tests.data_pipeline.test_sources_robots import write_v3

NAMES = ("b.mp4", "a/b.MOV", "a/b.npz", "a/notes.txt", "a/.hidden.mp4", ".cache/x.mp4", "a/c d 'e+%🎬.webm")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(b"x")
    return tmp_path / "local"


def upload(folder: Path, prefix: str) -> str:
    storage = Storage(prefix)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.publish(path.relative_to(folder).as_posix(), path.read_bytes())
    return prefix


def shapes(listing: Listing) -> list[tuple]:
    """What does not depend on where it lies."""
    return [
        (
            file.name,
            file.size_bytes,
            [
                (
                    s.start_s,
                    s.end_s,
                    s.label,
                    s.split,
                    s.sidecar and (s.sidecar.address.rpartition("/")[2], s.sidecar.episode),
                )
                for s in file.spans
            ],
        )
        for file in listing.files
    ]


@pytest.mark.parametrize("pattern", ["", "/*.mp4", "/**/*.[mM]*", "/a/*", "/b.mp4"])
def test_a_prefix_gives_what_a_folder_gives(local: Path, s3_bucket: str, pattern: str) -> None:
    prefix = upload(local, f"{s3_bucket}/some/videos")
    upload(local, f"{s3_bucket}/some/videos-of-others")
    remote, here = list_sources((prefix + pattern,)), list_sources((f"{local}{pattern}",))
    assert shapes(remote) == shapes(here)
    assert [entry.reason for entry in remote.ignored] == [entry.reason for entry in here.ignored]
    for file in remote.files:
        assert file.uri == file.address
        assert file.uri.startswith(prefix + "/")
        assert file.etag
        assert file.mtime_ns > 0
    for span in (file.spans[0] for file in remote.files if file.name == "a/b.MOV"):
        assert span.sidecar is not None
        assert span.sidecar.etag


def test_listing_a_prefix_makes_no_request_for_each_object(local: Path, s3_bucket: str, monkeypatch) -> None:
    prefix = upload(local, f"{s3_bucket}/v")
    monkeypatch.setattr(Storage, "info", lambda *_: pytest.fail("a call for one object"))
    assert len(list_sources((prefix,)).files) == 3
    rows = "uri,actions\nb.mp4,\na/b.MOV,a/b.npz\ngone.mp4,\n"
    (local / "l.csv").write_text(rows)
    assert len(list_sources((str(local / "l.csv"),), root=prefix).files) == 2


def test_an_object_alone_and_the_sidecar_beside_it(local: Path, s3_bucket: str) -> None:
    prefix = upload(local, f"{s3_bucket}/v")
    listing = list_sources((f"{prefix}/a/b.MOV", f"{prefix}/a/notes.txt"))
    assert [(file.name, bool(file.spans[0].sidecar)) for file in listing.files] == [
        ("b.MOV", True),
        ("notes.txt", False),
    ]


def test_keys_that_no_file_could_have_are_passed_over(s3_bucket: str) -> None:
    storage = Storage(s3_bucket)
    storage.publish("v/a.mp4", b"x")
    for key in ("v//b.mp4", "v/folder/"):
        filesystem(os.getpid()).call_s3(
            "put_object", Bucket=s3_bucket.removeprefix("s3://"), Key=key, Body=b""
        )
    listing = list_sources((f"{s3_bucket}/v",))
    assert [file.name for file in listing.files] == ["a.mp4"]
    assert all("no file could have this name" in entry.reason for entry in listing.ignored)


def test_what_is_missing_is_a_sentence(s3_bucket: str) -> None:
    with pytest.raises(UsageError, match=r"/nothing does not exist"):
        list_sources((f"{s3_bucket}/nothing",))
    with pytest.raises(UsageError, match=r"/nothing.mp4 does not exist"):
        list_sources((f"{s3_bucket}/nothing.mp4",))
    with pytest.raises(DataError, match="no-such-bucket"):
        list_sources(("s3://no-such-bucket-of-mine/videos",))
    with pytest.raises(UsageError, match="names no bucket"):
        list_sources(("s3://",))
    with pytest.raises(DataError, match="no video is in"):
        list_sources((f"{s3_bucket}/*.mp4",))


def test_a_list_of_a_bucket_stays_in_its_prefix(local: Path, s3_bucket: str) -> None:
    prefix = upload(local, f"{s3_bucket}/v")
    upload(local, f"{s3_bucket}/other")
    uris = [
        "b.mp4",
        f"{prefix}/a/b.MOV",
        "../other/b.mp4",
        f"{s3_bucket}/other/b.mp4",
        "/b.mp4",
        "s3://x/b.mp4",
        "no.mp4",
        "file:///etc/x.mp4",
    ]
    Storage(prefix).publish("list.csv", ("uri\n" + "\n".join(uris) + "\n").encode())
    listing = list_sources((f"{prefix}/list.csv",))
    assert shapes(listing) == [
        entry for entry in shapes(list_sources((str(local),))) if entry[0] in ("b.mp4", "a/b.MOV")
    ]
    assert {int(entry.reason.split(":")[0].rpartition(" ")[2]) for entry in listing.ignored} == {
        4,
        5,
        6,
        7,
        8,
        9,
    }
    assert all(entry.is_wanted for entry in listing.ignored)


def test_lerobot_in_a_bucket_is_as_in_a_folder(tmp_path: Path, s3_bucket: str) -> None:
    write_v3(tmp_path / "lerobot")
    remote = list_sources((upload(tmp_path / "lerobot", f"{s3_bucket}/robots"),))
    assert shapes(remote) == shapes(list_sources((str(tmp_path / "lerobot"),)))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_a_listing_does_not_matter(local: Path, s3_bucket: str, monkeypatch, seed: int) -> None:
    prefix = upload(local, f"{s3_bucket}/v")
    before = list_sources((prefix,))
    true_walk = Storage.walk

    def walk(self: Storage, folder: str = ""):
        found = list(true_walk(self, folder))
        return iter([found[k] for k in np.random.default_rng(seed).permutation(len(found))])

    monkeypatch.setattr(Storage, "walk", walk)
    assert list_sources((prefix,)) == before
