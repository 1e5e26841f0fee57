"""What goes wrong while a shard is brought, and what is brought ahead."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, MissingError, StorageError
from data_pipeline.format import sha256, tar_name
from data_pipeline.storage import Storage
from pretrain.data.cache import ShardCache
from tests.pretrain.cached_shards import (
    GET,
    KIB,
    body_of,
    is_here,
    leftovers,
    put,
    until,
    whole,
)
from tests.servers.faults import FaultProxy


def test_a_changed_byte_in_the_bucket_is_never_read(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faults.counts.clear()
    body = bytearray(body_of(0))
    body[20_000] ^= 1
    faulty.publish(tar_name(done.stem), bytes(body))
    told = (
        rf"{faulty.root}/shards/train-000000.tar is not the tar that its done record names \(30720 bytes of "
        rf"30720, sha256 {sha256(bytes(body))[:12]}…, twice\).*`foreframe verify {faulty.root}`"
    )
    for _ in range(3):
        with pytest.raises(DataError, match=told):
            cache.read(faulty, done, [(0, 10)])
        assert faults.counts[GET] == 2, "once known, it is not brought again for each of its samples"
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_a_byte_changed_on_its_way_is_brought_again(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faulty.publish(tar_name(done.stem), bytes(done.tar_bytes))
    faults.counts.clear()

    there: list[int] = []

    def mend(method: str, _: str) -> None:
        if method == "GET" and faults.counts[GET] == 1:
            there.extend(path.stat().st_size for path in cache.folder.glob("*part"))
            put(faulty, 0)

    faults.before = mend
    assert cache.read(faulty, done, whole(done)) == [body_of(0)]
    assert faults.counts[GET] == 2
    assert there == [0]  # the wrong one is gone before the next comes: there is room for one


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_told_before_anything_comes(
    faulty: Storage, faults: FaultProxy, tmp_path: Path, change: int
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faulty.publish(tar_name(done.stem), bytes(done.tar_bytes + change))
    with pytest.raises(
        DataError, match=rf"train-000000.tar is not the tar .*\({30720 + change} bytes of 30720\)"
    ):
        cache.read(faulty, done, [(0, 10)])
    assert faults.counts[GET] == 0
    faulty.remove(tar_name(done.stem))
    with pytest.raises(MissingError, match=r"train-000000.tar"):
        cache.read(faulty, done, [(0, 10)])
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("fault", "times"),
    [("503", 2), ("500", 1), ("reset", 2), ("hang", 1), ("short body", 3), ("slow first byte", 1)],
)
def test_a_download_comes_through_faults(
    faulty: Storage, faults: FaultProxy, steadfast: None, tmp_path: Path, fault: str, times: int
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faults.counts.clear()
    if fault == "slow first byte":
        faults.before = lambda method, _: time.sleep(2 if method == "GET" and not faults.counts[GET] else 0)
    else:
        faults.inject(fault, "GET", times=times)
    assert cache.read(faulty, done, whole(done)) == [body_of(0)]
    assert faults.counts[GET] > times
    assert leftovers(cache) == []


@pytest.mark.parametrize("fault", ["503", "reset", "hang"])
def test_a_store_that_stays_broken_is_told_and_leaves_nothing(
    faulty: Storage, faults: FaultProxy, impatient: None, tmp_path: Path, fault: str
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faults.inject(fault, "GET", times=None)
    with pytest.raises(StorageError, match=rf"{faulty.root}/shards/train-000000.tar: the store does not"):
        cache.read(faulty, done, whole(done))
    assert not is_here(cache, done)
    assert leftovers(cache) == []


def test_a_body_that_is_cut_in_half_ever_again_arrives_half_after_half(
    faulty: Storage, faults: FaultProxy, steadfast: None, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faults.inject("short body", "GET", times=None)
    assert cache.read(faulty, done, whole(done)) == [body_of(0)]
    assert leftovers(cache) == []


@pytest.mark.parametrize("where", ["remote download", "local download", "fsync"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    storage = Storage(tmp_path / "set" if where == "local download" else f"{s3_bucket}/set")
    cache = ShardCache(tmp_path / "cache", 100 * KIB)
    dones = [put(storage, number) for number in range(2)]
    cache.read(storage, dones[0], [])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        """A file on a disk that fills up after some bytes."""

        def __init__(self, path: Path, mode: str) -> None:
            self._file = open(path, mode)  # noqa: SIM115  closed in __exit__

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> None:
            self._file.write(data[:100])
            full()

    with monkeypatch.context() as patch:
        if where == "remote download":
            patch.setattr("data_pipeline.storage.open", Full, raising=False)
        elif where == "local download":
            patch.setattr("data_pipeline.storage._copy", full)
        else:
            patch.setattr("pretrain.data.cache.os.fsync", full)
        told = rf"{cache.folder}, the cache .* No space left .*: make room .* data.cache_bytes below 102400"
        with pytest.raises(DataError, match=told):
            cache.read(storage, dones[1], [])
    assert leftovers(cache) == []
    assert is_here(cache, dones[0]) and not is_here(cache, dones[1])
    assert cache.read(storage, dones[1], whole(dones[1])) == [body_of(1)]


def test_who_reads_while_a_shard_is_prefetched_waits_for_it(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    dones = [put(faulty, number) for number in range(3)]
    faults.counts.clear()
    held, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET":
            held.set()
            goes_on.wait(60)

    faults.before = hold
    cache.prefetch(faulty, dones)
    assert held.wait(60)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(cache.read, faulty, dones[0], whole(dones[0]))
        time.sleep(0.3)
        assert not reading.done()
        goes_on.set()
        assert reading.result() == [body_of(0)]
    until(lambda: is_here(cache, dones[2]))
    stems = [path.rpartition("/")[2] for method, path in faults.paths if method == "GET"]
    assert stems == [f"{done.stem}.tar" for done in dones]


def test_processes_that_prefetch_the_same_share_the_work(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    """Two that are pickled from one: what the first brings, the second passes over."""
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    other = pickle.loads(pickle.dumps(cache))
    dones = [put(faulty, number) for number in range(4)]
    faults.counts.clear()
    held, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET" and not held.is_set():
            held.set()
            goes_on.wait(60)

    faults.before = hold
    cache.prefetch(faulty, dones)
    assert held.wait(60)
    other.prefetch(faulty, dones)
    until(lambda: all(is_here(cache, done) for done in dones[1:]))
    assert not is_here(cache, dones[0])
    goes_on.set()
    until(lambda: is_here(cache, dones[0]))
    assert faults.counts[GET] == 4


def test_a_later_prefetch_replaces_what_has_not_begun(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    dones = [put(faulty, number) for number in range(4)]
    held, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET":
            held.set()
            goes_on.wait(60)

    faults.before = hold
    cache.prefetch(faulty, dones[:3])
    assert held.wait(60)
    cache.prefetch(faulty, dones[2:])
    goes_on.set()
    until(lambda: cache._thread is None)
    assert [is_here(cache, done) for done in dones] == [True, False, True, True]
    held.clear()
    goes_on.clear()
    cache.folder.joinpath(f"{dones[0].tar_sha256}.tar").unlink()
    cache.prefetch(faulty, dones[:2])
    assert held.wait(60)
    cache.close()
    goes_on.set()
    until(lambda: cache._thread is None)
    assert [is_here(cache, done) for done in dones] == [True, False, True, True]


def test_a_prefetch_keeps_what_it_names_and_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    storage, cache = Storage(tmp_path / "set"), ShardCache(tmp_path / "cache", 3 * 30 * KIB)
    dones = [put(storage, number) for number in range(6)]
    for number in (1, 4, 5):
        cache.read(storage, dones[number], [])
    storage.remove(tar_name(dones[1].stem))  # it was unused for longest, and could not be brought again
    cache.prefetch(storage, [dones[0], dones[0], *dones[1:4]])
    until(lambda: cache._thread is None)
    assert [is_here(cache, done) for done in dones] == [True, True, True, False, False, False]


def test_trouble_of_a_prefetch_is_met_by_who_reads(tmp_path: Path) -> None:
    storage, cache = Storage(tmp_path / "set"), ShardCache(tmp_path / "cache", 1 << 20)
    dones = [put(storage, number) for number in range(2)]
    storage.remove(tar_name(dones[0].stem))
    cache.prefetch(storage, dones)
    until(lambda: is_here(cache, dones[1]))
    with pytest.raises(MissingError, match=r"train-000000.tar"):
        cache.read(storage, dones[0], [])


def test_a_process_that_ends_amid_a_prefetch_ends_in_silence(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    script = (
        "import pickle, sys, time\n"
        "cache, storage, done = pickle.load(sys.stdin.buffer)\n"
        "cache.prefetch(storage, [done])\n"
        "while not list(cache.folder.glob('*part')): time.sleep(0.01)\n"
        "cache.close()\n"
    )
    faults.inject("hang", "GET", times=None)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((cache, faulty, done)),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    faults.heal()
    assert cache.read(faulty, done, whole(done)) == [body_of(0)]
    assert leftovers(cache) == []


def test_a_file_that_others_remove_while_it_comes_is_brought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path / "store")
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(storage, 0)
    download, times = Storage.download, 0

    def removed(self: Storage, name: str, path: Path) -> None:
        nonlocal times
        download(self, name, path)
        times += 1
        if times <= removals:
            path.unlink()

    monkeypatch.setattr(Storage, "download", removed)
    removals = 2
    assert cache.read(storage, done, whole(done)) == [body_of(0)] and times == 3
    cache.drop_damaged(done)  # is not: it stays
    assert is_here(cache, done)
    cache._path(done, "tar").unlink()
    times, removals = 0, 99
    with pytest.raises(StorageError, match=r"others remove its files while they come.*data\.cache_folder"):
        cache.read(storage, done, whole(done))


def test_a_damaged_file_of_the_cache_is_dropped_and_no_other(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store")
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    first, second = (put(storage, number) for number in range(2))
    for done in (first, second):
        cache.read(storage, done, [(0, 10)])
    damaged = bytearray(body_of(0))
    damaged[7] ^= 1
    cache._path(first, "tar").write_bytes(damaged)
    assert cache.drop_damaged(first) and not is_here(cache, first)
    assert not cache.drop_damaged(second) and is_here(cache, second)
    assert cache.read(storage, first, whole(first)) == [body_of(0)]
