"""Shards in a bucket, and the cache that brings them, for the tests of it."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from data_pipeline.format import ShardDone, sha256, shard_stem, tar_name
from data_pipeline.storage import Storage
from pretrain.data.cache import ShardCache

SPAWN = multiprocessing.get_context("spawn")
KIB = 1 << 10
GET = ("GET", "object")


def body_of(number: int, size: int = 30 * KIB) -> bytes:
    return random.Random(number).randbytes(size)


def record(number: int, body: bytes) -> ShardDone:
    return ShardDone(shard_stem("train", number), "train", 1, len(body), sha256(body), "")


def put(storage: Storage, number: int, size: int = 30 * KIB) -> ShardDone:
    """A shard of random bytes, as `body_of` gives them."""
    body = body_of(number, size)
    storage.publish(tar_name(shard_stem("train", number)), body)
    return record(number, body)


def whole(done: ShardDone) -> list[tuple[int, int]]:
    return [(0, done.tar_bytes)]


def is_here(cache: ShardCache, done: ShardDone) -> bool:
    return (cache.folder / f"{done.tar_sha256}.tar").exists()


def leftovers(cache: ShardCache) -> list[str]:
    """What lies in the folder beside shards and the lock on it."""
    return sorted(p.name for p in cache.folder.iterdir() if p.suffix != ".tar" and p.name != "lock")


def until(is_so: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def spawn(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = SPAWN.Process(target=work, args=arguments)
    process.start()
    return process


def read_and_tell(cache: ShardCache, storage: Storage, done: ShardDone, told: Path) -> None:
    """In a process of its own: say that it begins, read the shard, write down what was read."""
    told.with_suffix(".begins").touch()
    (data,) = cache.read(storage, done, whole(done))
    told.with_suffix(".part").write_bytes(data)
    told.with_suffix(".part").rename(told)
