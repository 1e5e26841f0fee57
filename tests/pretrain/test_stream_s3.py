"""Batches from a bucket: those of the local folder whatever the store does, or a named error."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, StorageError
from data_pipeline.format import index_name, read_info, read_shards, shard_stem, tar_name
from data_pipeline.storage import Storage
from launch.train import run_train
from pretrain.config import RunConfig
from pretrain.data.bad import SKIPPED_FILE
from pretrain.data.stream import Batches, num_outstanding
from pretrain.strategy.base import Engine
from pretrain.tracking.jsonl import read_metrics
from tests.pretrain.cached_shards import SPAWN, spawn, until
from tests.pretrain.impatient import take_along
from tests.pretrain.taken_batches import assert_equal, copied, opened, taken
from tests.servers.faults import FaultProxy
from tests.servers.s3 import forget_s3, make_bucket, use_s3
from tests.small_dataset import tiny_config

SIZES = (7, 5, 8, 3)  # samples in the train shards of `small_dataset`, numbered through
MODES = ("cache", "ranges")


def upload(folder: Path, root: str) -> str:
    storage = Storage(root)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        storage.publish(path.relative_to(folder).as_posix(), path.read_bytes())
    return root


@pytest.fixture(scope="module")
def uploaded(s3_server: str, small_dataset: Path) -> str:
    """`small_dataset` in a bucket; read only."""
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3_server)
        root = upload(small_dataset, f"{make_bucket()}/small")
    forget_s3()
    return root


@pytest.fixture
def remote(uploaded: str, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of `uploaded`, reached through `faults`."""
    use_s3(monkeypatch, faults.endpoint)
    yield uploaded
    forget_s3()


@pytest.fixture
def own_remote(small_dataset: Path, faulty_bucket: str, faults: FaultProxy) -> str:
    """The same in a bucket that a test may damage."""
    root = upload(small_dataset, f"{faulty_bucket}/small")
    faults.counts.clear()
    faults.paths.clear()
    return root


def local(small_dataset: Path, out: Path = Path("runs"), **changes: Any) -> RunConfig:
    return tiny_config(small_dataset, out, **changes)


def from_bucket(config: RunConfig, root: str, mode: str, folder: Path, **data: Any) -> RunConfig:
    """The same run, read from a bucket."""
    update = {"shards": root, "remote": mode, "cache_folder": str(folder / "cache"), **data}
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def shard_of(key: str) -> int:
    ends = list(itertools.accumulate(SIZES))
    return next(shard for shard, end in enumerate(ends) if int(key, 16) < end)


def keys_of(steps: list[list[dict[str, Any]]]) -> list[str]:
    return [key for step in steps for batch in step for key in batch["keys"]]


def shards_in_order(config: RunConfig) -> list[int]:
    """The shards of the first epoch, in the order of their first sample."""
    changed = config.model_copy(
        update={"train": config.train.model_copy(update={"global_batch": 23, "micro_batch": 23})}
    )
    return list(dict.fromkeys(shard_of(key) for key in keys_of(taken(changed, 1))))


def gets(faults: FaultProxy, ending: str = ".tar") -> Counter[str]:
    """Requests for the bodies of files, by name."""
    asked = [path.partition("?")[0] for method, path in faults.paths if method == "GET"]
    return Counter(path.rpartition("/")[2] for path in asked if path.endswith(ending))


def lose(faults: FaultProxy, shards: list[int], fault: str = "reset") -> None:
    """From now on the store answers no more for these shards, nor for their indexes."""
    for shard in shards:
        for name in (tar_name, index_name):
            faults.inject(fault, "*", times=None, key=name(shard_stem("train", shard)))


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Callable[[], None]) -> None:
    """Call `act` at the end of that step of a run; 0 is before the first."""
    seek, update, steps = Batches.seek, Engine.update_target, itertools.count(1)

    def begins(self: Batches, step: int, samples: int) -> None:
        seek(self, step, samples)
        if not wanted:
            act()

    def updates(self: Engine, momentum: float) -> None:
        update(self, momentum)
        if next(steps) == wanted:
            act()

    monkeypatch.setattr(Batches, "seek", begins)
    monkeypatch.setattr(Engine, "update_target", updates)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_batches_are_those_of_the_local_folder_and_so_they_are_after_a_resume(
    remote: str, small_dataset: Path, tmp_path: Path, faults: FaultProxy, mode: str, workers: int
) -> None:
    """Over two epochs: keys, clips, masks, states and actions, bit for bit."""
    config = from_bucket(local(small_dataset), remote, mode, tmp_path, workers=workers)
    whole = taken(local(small_dataset), 12)
    assert_equal(taken(config, 12), whole)
    asked = gets(faults)
    assert max(asked.values()) == 1 if mode == "cache" else sum(asked.values()) >= 48
    assert_equal(taken(config, 4, step=7), whole[7:11])


WHERE = {
    "an index": ("cache", ".index.parquet"),
    "a range": ("ranges", ".tar"),
    "a shard": ("cache", ".tar"),
}


@pytest.mark.parametrize("fault", ["503", "500", "reset", "hang", "short body", "slow first byte"])
@pytest.mark.parametrize("where", WHERE)
def test_a_fault_that_passes_changes_nothing(
    remote: str,
    small_dataset: Path,
    tmp_path: Path,
    faults: FaultProxy,
    steadfast: None,
    where: str,
    fault: str,
) -> None:
    mode, ending = WHERE[where]
    faults.inject(fault, "GET", first=2, times=2, key=ending)
    config = from_bucket(local(small_dataset), remote, mode, tmp_path)
    assert_equal(taken(config, 6), taken(local(small_dataset), 6))
    assert sum(gets(faults, ending).values()) >= {"an index": 4, "a range": 24, "a shard": 4}[where] + 1


@pytest.mark.timeout(60)
def test_shards_cut_in_half_ever_again_arrive_half_after_half(
    remote: str, small_dataset: Path, tmp_path: Path, faults: FaultProxy, steadfast: None
) -> None:
    mode, ending = WHERE["a shard"]
    faults.inject("short body", "GET", times=None, key=ending)
    config = from_bucket(local(small_dataset), remote, mode, tmp_path)
    assert_equal(taken(config, 6), taken(local(small_dataset), 6))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("where", "fault"),
    [
        (where, fault)
        for where in WHERE
        for fault in ("503", "reset", "hang", "short body")
        if (where, fault) != ("a shard", "short body")
    ],
)
def test_a_fault_that_stays_is_a_named_error(
    remote: str,
    small_dataset: Path,
    tmp_path: Path,
    faults: FaultProxy,
    impatient: None,
    where: str,
    fault: str,
) -> None:
    mode, ending = WHERE[where]
    faults.inject(fault, "GET", times=None, key=ending)
    config = from_bucket(local(small_dataset), remote, mode, tmp_path)
    with pytest.raises(StorageError, match=rf"{remote}/shards/train-\d+{ending}: the store does not answer"):
        taken(config, 1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
def test_a_store_that_goes_away_is_told_by_every_worker_and_nothing_is_replaced(
    remote: str,
    small_dataset: Path,
    tmp_path: Path,
    faults: FaultProxy,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    workers: int,
) -> None:
    """In the second half of an epoch, with everything that was asked for before still delivered."""
    take_along(monkeypatch)
    plain = local(small_dataset, train={"global_batch": 1, "micro_batch": 1}, data={"shuffle_window": 1})
    config = from_bucket(plain, remote, mode, tmp_path, workers=workers)
    order = shards_in_order(plain)
    good = sum(SIZES[shard] for shard in order[:2])
    lose(faults, order[2:])
    with opened(config) as batches:
        found = [[copied(batch) for batch in batches.take(1)] for _ in range(good)]
        for _ in range(2 + num_outstanding(batches._plan)):
            with pytest.raises(StorageError, match=rf"{remote}/shards/train-.* the store does not answer"):
                next(batches.take(1))
    assert_equal(found, taken(plain, good))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", MODES)
def test_a_run_whose_store_goes_away_ends_by_name_and_goes_on_later(
    remote: str,
    small_dataset: Path,
    tmp_path: Path,
    faults: FaultProxy,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    train, data = {"steps": 6, "checkpoint_every": 1}, {"shuffle_window": 1}
    plain = local(small_dataset, tmp_path / "local", train=train, data=data)
    config = from_bucket(local(small_dataset, tmp_path, train=train, data=data), remote, mode, tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: lose(faults, shards_in_order(plain)[2:]))
        with pytest.raises(StorageError, match=r"the store does not answer .* the same command goes on"):
            run_train(config, quiet=True)
    run = tmp_path / "tiny"
    assert 1 < read_metrics(run)[-1]["step"] < 6
    assert not (run / SKIPPED_FILE).exists()
    faults.heal()
    assert run_train(config, quiet=True).step == 6
    assert curve(run) == curve(run_train(plain, quiet=True).run)


def curve(run: Path) -> list[tuple[int, float, str]]:
    return [(line["step"], line["loss"], line["batch_digest"]) for line in read_metrics(run)]


@pytest.mark.parametrize("mode", MODES)
def test_faults_amid_a_run_change_no_loss(
    remote: str,
    small_dataset: Path,
    tmp_path: Path,
    faults: FaultProxy,
    steadfast: None,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    train, data = {"steps": 6}, {"shuffle_window": 1}
    plain = local(small_dataset, tmp_path / "local", train=train, data=data)
    config = from_bucket(local(small_dataset, tmp_path, train=train, data=data), remote, mode, tmp_path)
    harm = [("503", 2), ("reset", 1), ("hang", 1), ("short body", 1), ("slow first byte", 1)]

    def spoil() -> None:
        """Each of them once, one after the other, at whatever is asked for."""
        for number, (fault, times) in enumerate(harm):
            faults.inject(fault, "GET", first=1 if not number else 2, times=times)

    at_step(monkeypatch, 1, spoil)
    assert run_train(config, quiet=True).step == 6
    assert all(fault.seen >= fault.first for fault in faults._faults)
    assert curve(tmp_path / "tiny") == curve(run_train(plain, quiet=True).run)
    assert not (tmp_path / "tiny" / SKIPPED_FILE).exists()


@pytest.mark.parametrize("mode", MODES)
def test_samples_of_a_deleted_shard_are_replaced_written_down_and_limited(
    own_remote: str,
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    plain = local(small_dataset, tmp_path, train={"steps": 6}, data={"shuffle_window": 1})
    config = from_bucket(plain, own_remote, mode, tmp_path)
    lost = shards_in_order(plain)[2]
    ids = [key for key in sorted(set(keys_of(taken(plain, 6)))) if shard_of(key) == lost]
    tar = tar_name(shard_stem("train", lost))
    at_step(monkeypatch, 1, lambda: Storage(own_remote).remove(tar))
    assert run_train(config, quiet=True).step == 6
    run = tmp_path / "tiny"
    lines = [json.loads(line) for line in (run / SKIPPED_FILE).read_text().splitlines()]
    assert sorted({line["id"] for line in lines}) == ids
    assert all(f"{own_remote}/{tar} does not exist" in line["reason"] for line in lines)
    assert read_metrics(run)[-1]["data/bad_samples"] == len(lines) >= SIZES[lost]
    shutil.rmtree(run)
    Storage(own_remote).publish(tar, (small_dataset / tar).read_bytes())
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    at_step(monkeypatch, 0, lambda: Storage(own_remote).remove(tar))
    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_samples": 1})})
    with pytest.raises(DataError, match=rf"more than data.max_bad_samples = 1: {ids[0][:18]}.*{tar}"):
        run_train(strict, quiet=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_byte_in_the_bucket_is_in_no_batch(
    own_remote: str, small_dataset: Path, tmp_path: Path, mode: str
) -> None:
    """It costs its shard where whole shards are checked, and its sample where samples are."""
    plain = local(small_dataset, train={"global_batch": 23, "micro_batch": 23})
    storage = Storage(own_remote)
    shard = read_shards(storage, read_info(storage).shards_of("train"))[2]
    sample = shard.samples[3]
    member = sample.members["mp4"]
    damaged = bytearray(storage.read(tar_name(shard.done.stem)))
    damaged[member.offset + member.size // 2] ^= 1
    storage.publish(tar_name(shard.done.stem), bytes(damaged))
    (found,), (whole,) = taken(from_bucket(plain, own_remote, mode, tmp_path), 1)[0], taken(plain, 1)[0]
    gone = {sample.key} if mode == "ranges" else {each.key for each in shard.samples}
    assert {key for key, _ in found["bad"]} == gone
    assert not gone & set(found["keys"])
    for row, key in enumerate(whole["keys"]):
        if key not in gone:
            assert found["keys"][row] == key
            assert found["clips"][row].equal(whole["clips"][row])


def take_as_rank(config: RunConfig, rank: int, barrier: Barrier, told: Path) -> None:
    """In a process of its own: what a rank of two is given; both begin together."""
    with opened(config, world=2, rank=rank) as batches:
        barrier.wait(60)
        told.write_text(json.dumps([key for batch in batches.take(12) for key in batch.keys]))


def test_two_ranks_of_a_host_bring_each_shard_once(
    remote: str, small_dataset: Path, tmp_path: Path, faults: FaultProxy
) -> None:
    """Downloads are slow, so that each comes to want what the other is bringing."""
    strategy, train = {"kind": "deepspeed"}, {"global_batch": 8, "micro_batch": 1}
    plain = local(small_dataset, strategy=strategy, train=train)
    config = from_bucket(plain, remote, "cache", tmp_path)
    faults.inject("slow first byte", "GET", times=None, key=".tar")
    told, barrier = [tmp_path / f"rank-{rank}" for rank in range(2)], SPAWN.Barrier(2)
    ranks = [spawn(take_as_rank, config, rank, barrier, path) for rank, path in enumerate(told)]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    found = [json.loads(path.read_text()) for path in told]
    together = [key for step in range(3) for keys in found for key in keys[4 * step : 4 * step + 4]]
    assert together == keys_of(taken(plain, 3))
    assert gets(faults) == {f"{shard_stem('train', shard)}.tar": 1 for shard in range(4)}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_window_is_brought_while_this_one_is_read(
    remote: str, small_dataset: Path, tmp_path: Path, faults: FaultProxy, workers: int
) -> None:
    """And no more than that: with a window of one shard, two are here."""
    plain = local(small_dataset, train={"global_batch": 1, "micro_batch": 1}, data={"shuffle_window": 1})
    config = from_bucket(plain, remote, "cache", tmp_path, workers=workers, prefetch=1)
    order = shards_in_order(plain)
    done = read_info(Storage(small_dataset)).shards_of("train")

    def here() -> set[int]:
        return {
            shard
            for shard, each in enumerate(done)
            if (tmp_path / "cache" / f"{each.tar_sha256}.tar").exists()
        }

    with opened(config) as batches:
        next(batches.take(1))
        until(lambda: here() == set(order[:2]))
        for _ in range(SIZES[order[0]] - 1 - num_outstanding(batches._plan)):
            next(batches.take(1))
        time.sleep(0.2)
        assert here() == set(order[:2])
        list(batches.take(1 + num_outstanding(batches._plan)))
        until(lambda: here() == set(order[:3]))
    assert len(gets(faults)) == 3
