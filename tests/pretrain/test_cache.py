"""One download for all who want a shard, within the limit, and its right bytes or a named error."""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import signal
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, RefusedError
from data_pipeline.format import ShardDone, tar_name
from data_pipeline.storage import Storage
from pretrain.data.cache import ShardCache
from tests.pretrain.cached_shards import (
    GET,
    KIB,
    body_of,
    is_here,
    leftovers,
    put,
    read_and_tell,
    record,
    spawn,
    until,
    whole,
)
from tests.servers.faults import FaultProxy


def test_spans_are_those_of_the_object(s3_bucket: str, tmp_path: Path) -> None:
    storage = Storage(f"{s3_bucket}/set")
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    for number, size in enumerate([1, 10_240, 100_000]):
        done, body = put(storage, number, size), body_of(number, size)
        rng = random.Random(number)
        starts = [rng.randrange(size) for _ in range(20)]
        spans = [(start, rng.randrange(size - start + 1)) for start in starts]
        for _ in range(2):
            assert cache.read(storage, done, spans) == [body[start : start + n] for start, n in spans]
        with pytest.raises(
            DataError, match=rf"{done.stem}.tar is cut short: 1 of 2 bytes at offset {size - 1}"
        ):
            cache.read(storage, done, [(size - 1, 2)])
        assert cache.read(storage, done, []) == []
    assert leftovers(cache) == []


def test_equal_names_of_several_data_sets_do_not_mix(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    one, two = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    of_one = put(one, 0, 100)
    two.publish(tar_name(of_one.stem), b"other")
    of_two = record(0, b"other")
    for _ in range(2):
        assert cache.read(one, of_one, whole(of_one)) == [body_of(0, 100)]
        assert cache.read(two, of_two, whole(of_two)) == [b"other"]


def test_a_shard_that_is_here_costs_no_request(faulty: Storage, faults: FaultProxy, tmp_path: Path) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    cache.read(faulty, done, whole(done))
    faults.counts.clear()
    again = pickle.loads(pickle.dumps(cache))
    assert again.read(faulty, done, [(7, 9)]) == [body_of(0)[7:16]]
    assert not faults.counts


def test_processes_that_want_one_shard_download_it_once(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    faults.counts.clear()

    def hold(method: str, _: str) -> None:
        if method == "GET":
            until(lambda: len(list(tmp_path.glob("*.begins"))) == 4)
            time.sleep(0.5)  # in which the other three come to wait

    faults.before = hold
    processes = [spawn(read_and_tell, cache, faulty, done, tmp_path / f"{k}.told") for k in range(4)]
    for process in processes:
        process.join()
    assert [(tmp_path / f"{k}.told").read_bytes() for k in range(4)] == [body_of(0)] * 4
    assert faults.counts == {GET: 1, ("HEAD", "object"): 1}
    assert leftovers(cache) == []


def test_another_takes_over_when_the_process_that_downloads_is_killed(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    """Half of it has come: nothing of that half may be used, or stay, or keep its room."""
    cache, done = ShardCache(tmp_path / "cache", 40 * KIB), put(faulty, 0)
    faults.counts.clear()
    hangs, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET" and faults.counts[GET] == 1:
            hangs.set()
            goes_on.wait(60)

    faults.inject("short body", "GET")
    faults.before = hold
    first = spawn(read_and_tell, cache, faulty, done, tmp_path / "first.told")
    assert hangs.wait(60)
    second = spawn(read_and_tell, cache, faulty, done, tmp_path / "second.told")
    until(lambda: (tmp_path / "second.begins").exists())
    time.sleep(0.5)
    assert any(name.endswith("part") for name in leftovers(cache))
    assert not (tmp_path / "second.told").exists()
    there: list[int] = []
    faults.before = lambda *_: there.append(len(list(cache.folder.glob("*part"))))
    first.kill()
    first.join()
    second.join()
    assert there == [0, 1]  # when asked for the size, and for the bytes
    goes_on.set()
    assert (tmp_path / "second.told").read_bytes() == body_of(0)
    assert not (tmp_path / "first.told").exists()
    assert leftovers(cache) == []


def test_what_a_killed_process_left_goes_with_the_next_download(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    """Its room too: both shards fit only if what it reserved is given back."""
    dones = [put(faulty, number) for number in range(2)]
    cache = ShardCache(tmp_path / "cache", 40 * KIB)
    faults.counts.clear()
    faults.inject("hang", "GET")
    process = spawn(read_and_tell, cache, faulty, dones[0], tmp_path / "told")
    until(lambda: faults.counts[GET])
    assert any(name.endswith("part") for name in leftovers(cache))
    process.kill()
    process.join()
    assert len(leftovers(cache)) == 2
    assert cache.read(faulty, dones[1], [(0, 9)]) == [body_of(1)[:9]]
    assert leftovers(cache) == []


def test_who_waited_is_told_what_the_store_told_and_who_asks_later_tries_again(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache, done = ShardCache(tmp_path / "cache", 1 << 20), put(faulty, 0)
    held, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET" and not held.is_set():
            held.set()
            goes_on.wait(60)

    faults.before = hold
    faults.inject("403", "GET")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.read, faulty, done, whole(done))
        assert held.wait(60)
        second = pool.submit(cache.read, faulty, done, whole(done))
        time.sleep(0.2)
        goes_on.set()
        with pytest.raises(RefusedError, match=rf"{done.stem}.tar"):
            first.result()
        with pytest.raises(RefusedError, match=rf"{done.stem}.tar"):
            second.result()
    assert faults.counts[GET] == 1, "one asked for all"
    assert cache.read(faulty, done, whole(done)) == [body_of(0)]
    assert leftovers(cache) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(10, 40), min_size=4, max_size=7),
    reads=st.lists(st.integers(0, 6), min_size=20, max_size=40),
    max_bytes=st.integers(40, 120),
)
def test_the_least_recently_used_goes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], reads: list[int], max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("lru")
    storage, cache = Storage(folder / "set"), ShardCache(folder / "cache", max_bytes)
    dones = [put(storage, number, size) for number, size in enumerate(sizes)]
    kept: OrderedDict[str, int] = OrderedDict()
    for done in (dones[number % len(dones)] for number in reads):
        assert cache.read(storage, done, [(0, 1)]) == [body_of(dones.index(done), done.tar_bytes)[:1]]
        if done.tar_sha256 not in kept:
            while sum(kept.values()) + done.tar_bytes > max_bytes:
                kept.popitem(last=False)
        kept[done.tar_sha256] = done.tar_bytes
        kept.move_to_end(done.tar_sha256)
        assert {path.stem for path in cache.folder.glob("*.tar")} == set(kept)
    assert leftovers(cache) == []


class SlowStorage(Storage):
    """A local root whose downloads take a while, as over a network."""

    def download(self, name: str, target: Path) -> None:
        data = self.read(name)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        with open(handle, "wb", buffering=0) as file:
            for start in range(0, len(data), len(data) // 4 or 1):
                file.write(data[start : start + (len(data) // 4 or 1)])
                time.sleep(0.003)
        os.replace(temporary, target)


def read_at_random(
    cache: ShardCache, storage: Storage, dones: list[ShardDone], seed: int, folder: Path
) -> None:
    """In a process of its own, until `folder` has a file `stop`: compare spans of shards at random."""
    rng = random.Random(seed)
    bodies = [body_of(number, done.tar_bytes) for number, done in enumerate(dones)]
    (folder / f"{seed}.begins").touch()
    while not (folder / "stop").exists():
        if rng.random() < 0.05:
            cache.prefetch(storage, rng.sample(dones, 3))
        number = rng.randrange(len(dones))
        spans = [(start, rng.randrange(200)) for start in rng.sample(range(800), 3)]
        expected = [bodies[number][start : start + size] for start, size in spans]
        assert cache.read(storage, dones[number], spans) == expected


def bytes_of(cache: ShardCache) -> int:
    """What shards and downloads under way have now, while none of them can appear or go."""
    with open(cache.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        total = 0
        for path in cache.folder.iterdir():
            if path.suffix != ".lock":
                try:
                    total += path.stat().st_size
                except FileNotFoundError:  # renamed by the download
                    continue
        return total


def test_the_limit_holds_at_every_moment_with_killed_processes_too(tmp_path: Path) -> None:
    """Shards are removed under the hands of those that read them, all the time."""
    storage = SlowStorage(tmp_path / "set")
    rng = random.Random(0)
    dones = [put(storage, number, rng.randrange(1000, 3000)) for number in range(12)]
    cache = ShardCache(tmp_path / "cache", 9000)
    lasting = [spawn(read_at_random, cache, storage, dones, seed, tmp_path) for seed in (100, 101)]
    largest = 0
    for seed in range(5):
        victim = spawn(read_at_random, cache, storage, dones, seed, tmp_path)
        end = time.monotonic() + 60
        while not (tmp_path / f"{seed}.begins").exists():
            largest = max(largest, bytes_of(cache))
            assert time.monotonic() < end
        for _ in range(50):
            largest = max(largest, bytes_of(cache))
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL  # and not of a comparison
    (tmp_path / "stop").touch()
    for process in lasting:
        process.join()
    assert [process.exitcode for process in lasting] == [0, 0]
    assert 6000 < largest <= 9000
    cache.read(storage, put(storage, 12, 900), [])
    assert leftovers(cache) == []


def test_a_shard_that_is_being_read_may_go(tmp_path: Path) -> None:
    storage, cache = Storage(tmp_path / "set"), ShardCache(tmp_path / "cache", 30 * KIB)
    dones = [put(storage, number) for number in range(2)]
    with cache._open(storage, dones[0]) as file:
        cache.read(storage, dones[1], [])
        assert not is_here(cache, dones[0])
        assert os.pread(file.fileno(), 50 * KIB, 0) == body_of(0)


def test_a_download_waits_for_room_that_another_needs(
    faulty: Storage, faults: FaultProxy, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache", 40 * KIB)
    dones = [put(faulty, number) for number in range(2)]
    faults.counts.clear()
    held, goes_on = threading.Event(), threading.Event()

    def hold(method: str, _: str) -> None:
        if method == "GET" and not held.is_set():
            held.set()
            goes_on.wait(60)

    faults.before = hold
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.read, faulty, dones[0], whole(dones[0]))
        assert held.wait(60)
        cache.prefetch(faulty, [dones[1]])  # which does not wait
        until(lambda: cache._thread is None)
        second = pool.submit(cache.read, faulty, dones[1], whole(dones[1]))
        time.sleep(0.3)
        assert len(list(cache.folder.glob("*.lock"))) == 2
        assert faults.counts[GET] == 0 and not second.done()  # the first is counted once it is let go on
        goes_on.set()
        assert first.result() == [body_of(0)]
        assert second.result() == [body_of(1)]
    assert not is_here(cache, dones[0])


@pytest.mark.parametrize("max_bytes", [0, 30 * KIB - 1])
def test_a_shard_larger_than_the_cache_is_told(tmp_path: Path, max_bytes: int) -> None:
    storage, cache = Storage(tmp_path / "set"), ShardCache(tmp_path / "cache", max_bytes)
    done = put(storage, 0)
    told = rf"set/shards/train-000000.tar has 30720 bytes .* may have {max_bytes}: raise data.cache_bytes, or"
    with pytest.raises(DataError, match=told):
        cache.read(storage, done, whole(done))
    assert leftovers(cache) == []


def test_the_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "cache"
    cache = ShardCache(folder, 1 << 20)
    assert folder.stat().st_mode & 0o777 == 0o700
    told = rf"{folder}, the cache of shards, is another user's, or can be written by others.*chmod 700"
    folder.chmod(0o770)
    with pytest.raises(DataError, match=told):
        ShardCache(folder, 1 << 20)
    folder.chmod(0o755)
    ShardCache(folder, 1 << 20)
    stranger = os.geteuid() + 1
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.data.cache.os.geteuid", lambda: stranger)
        with pytest.raises(DataError, match=told):
            pickle.loads(pickle.dumps(cache))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file, the cache of shards, cannot be used: File exists"):
        ShardCache(tmp_path / "file", 1 << 20)


def test_a_folder_or_a_shard_that_somebody_removed_or_cut_comes_back(tmp_path: Path) -> None:
    storage, cache = Storage(tmp_path / "set"), ShardCache(tmp_path / "cache", 1 << 20)
    done = put(storage, 0)
    cache.read(storage, done, [])
    os.truncate(cache.folder / f"{done.tar_sha256}.tar", 100)
    assert cache.read(storage, done, whole(done)) == [body_of(0)]
    for path in cache.folder.iterdir():
        path.unlink()
    cache.folder.rmdir()
    assert cache.read(storage, done, whole(done)) == [body_of(0)]
