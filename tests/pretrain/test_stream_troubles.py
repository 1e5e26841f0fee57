"""What goes wrong with samples, workers and memory: never a sample short, never silent, never for ever."""

from __future__ import annotations

import atexit
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.errors import DataError, StorageError
from data_pipeline.format import tar_name
from launch.train import run_train
from pretrain.config import DataConfig, RunConfig, plan
from pretrain.data import stream as stream_module
from pretrain.data.corpus import Corpus
from pretrain.data.load import Loader, Request
from pretrain.data.reader import ClipReader, Sample
from pretrain.data.stream import Batches, gone
from pretrain.objective.base import Batch
from pretrain.strategy.base import Engine
from tests.pretrain.cached_shards import until
from tests.pretrain.taken_batches import CPU, assert_equal, keys_of, opened, taken
from tests.small_dataset import tiny_config


def lose(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = ClipReader.decode

    def fails(self: ClipReader, sample: Sample, *args: Any, **kwargs: Any) -> Any:
        if sample.key == key:
            raise DataError("planted")
        return decode(self, sample, *args, **kwargs)

    monkeypatch.setattr(ClipReader, "decode", fails)


def test_an_unreadable_clip_is_replaced_the_same_way_every_time(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(small_dataset, Path("runs"))
    whole = keys_of(config, 5)
    lose(whole[6], monkeypatch)
    first = taken(config, 5)
    assert_equal(first, taken(config, 5))
    keys = [key for step in first for batch in step for key in batch["keys"]]
    assert [n for n, (a, b) in enumerate(zip(whole, keys, strict=True)) if a != b] == [6]
    assert [b["bad"] for step in first for b in step if b["bad"]] == [((whole[6], "planted"),)]


def test_a_sample_can_be_excluded_by_its_id(small_dataset: Path) -> None:
    whole = keys_of(tiny_config(small_dataset, Path("runs")), 5)
    config = tiny_config(small_dataset, Path("runs"), data={"exclude": [whole[3]]})
    without = keys_of(config, 5)
    assert not any(batch["bad"] for step in taken(config, 5) for batch in step), "nor does it count as bad"
    assert [n for n, (a, b) in enumerate(zip(whole, without, strict=True)) if a != b] == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lost_shard_costs_its_samples_alone(workers: int, small_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    config = tiny_config(
        copy, Path("runs"), data={"workers": workers}, train={"global_batch": 23, "micro_batch": 23}
    )
    lost = [f"{number:020x}" for number in range(7, 12)]  # of the second shard
    (copy / tar_name("train-000001")).unlink()
    found = taken(config, 1)[0][0]
    assert sorted({key for key, _ in found["bad"]}) == lost
    assert not set(found["keys"]) & set(lost)
    assert len(found["keys"]) == 23


def test_nothing_readable_ends_with_a_sentence_not_with_a_loop(small_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    for tar in (copy / "shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(DataError, match=r"20 samples in a row cannot be read; the last, \w+: .*\.tar"):
        taken(tiny_config(copy, Path("runs")), 1)


def test_a_store_that_is_away_stops_the_run_and_replaces_nothing(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StorageError("s3://bucket/data does not answer")

    monkeypatch.setattr(ClipReader, "_fetch", away)
    with pytest.raises(StorageError, match="does not answer"):
        taken(tiny_config(small_dataset, Path("runs")), 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_trouble_of_the_machine_is_no_fault_of_a_sample(
    number: int, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, too many open files: which samples it hits is chance, so none is replaced."""
    config = tiny_config(small_dataset, Path("runs"))
    corpus_ready = plan(config, 1)
    batches = Batches(corpus_ready, 0, CPU)
    list(batches.take(1))

    def troubled(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("data_pipeline.storage.open", troubled, raising=False)
    with pytest.raises(StorageError, match=os.strerror(number)):
        list(batches.take(8))


def test_a_checkpoint_knows_of_every_bad_sample_before_it(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is written at a step that is not logged."""
    config = tiny_config(small_dataset, tmp_path, train={"steps": 9, "checkpoint_every": 3, "log_every": 100})
    lose(keys_of(config, 2)[5], monkeypatch)
    run = run_train(config, quiet=True).run
    for folder in (run / "checkpoints").glob("step-*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert len(manifest["progress"]["bad_ids"]) == 1
    assert len((run / "skipped.jsonl").read_text().splitlines()) >= 1


def test_only_a_worker_that_is_gone_is_called_so() -> None:
    assert gone(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")) is not None
    assert gone(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")) is not None
    assert gone(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nshape mismatch")) is None


@pytest.mark.parametrize("when", ["while it waits", "in a step"])
def test_a_killed_worker_ends_the_run_with_a_named_error(
    when: str, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch says so wherever the training process is at the time."""
    take = Batches.take

    def kill() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)

    def killed_before(self: Batches, count: int) -> Iterator[Batch]:
        yield from take(self, count)
        kill()

    def killed_within(self: Engine, momentum: float) -> None:
        kill()
        time.sleep(10)

    if when == "in a step":
        monkeypatch.setattr(Engine, "update_target", killed_within)
    else:
        monkeypatch.setattr(Batches, "take", killed_before)
    with pytest.raises(DataError, match="a loader worker was killed, most often for want of memory"):
        run_train(tiny_config(small_dataset, tmp_path, data={"workers": 1}), quiet=True)


class Hangs:
    """Unpickled in a worker, it waits: a decoder that never returns."""

    def __init__(self, config: RunConfig, corpus: Corpus, slots: Any) -> None:
        pass

    def __getitem__(self, request: Request) -> None:
        time.sleep(600)


def test_a_worker_that_hangs_is_reported_with_the_samples_it_was_given(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(small_dataset, Path("runs"), data={"workers": 1, "prefetch": 1})
    wanted = keys_of(tiny_config(small_dataset, Path("runs")), 1)[:2]
    monkeypatch.setattr(stream_module, "Loader", Hangs)
    slow = config.model_copy(update={"data": config.data.model_copy(update={"timeout_s": 1.0})})
    with (
        opened(slow) as batches,
        pytest.raises(DataError, match=f"no batch came for 1 s .*{', '.join(wanted)}"),
    ):
        next(batches.take(1))


class AbortsAtExit(Loader):
    """Its process aborts in the interpreter's teardown, as under a thread of a C++ library."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        atexit.register(os.abort)


def test_a_worker_that_has_done_its_work_is_not_told_as_killed(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several, for torch to hear of one while it waits for another."""
    monkeypatch.setattr(stream_module, "Loader", AbortsAtExit)
    keys_of(tiny_config(small_dataset, Path("runs"), data={"workers": 3}), 2)


class FailsThenHangs(Hangs):
    """The first request is an error that ends the run, while the worker hangs in the next."""

    def __getitem__(self, request: Request) -> Any:
        return super().__getitem__(request) if request.slot else DataError("planted")


def train_into_a_hang(config: RunConfig) -> None:
    """In a process of its own, as a rank."""
    stream_module.Loader = FailsThenHangs  # type: ignore[assignment, misc]
    try:
        run_train(config, quiet=True)
    except DataError as error:
        raise SystemExit(error.exit_code) from error


def test_a_run_that_ends_by_an_error_does_not_wait_for_its_workers(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = tiny_config(small_dataset, tmp_path, data={"workers": 1})
    rank = multiprocessing.get_context("spawn").Process(target=train_into_a_hang, args=(config,))
    rank.start()
    rank.join(45)
    code = rank.exitcode
    rank.kill()
    assert code == DataError.exit_code


class Stalls(Hangs):
    """In a worker: says its pid when it is unpickled, then waits for a file `go`, and then hangs."""

    def __init__(self, config: RunConfig, corpus: Corpus, slots: Any) -> None:
        self._folder = Path(config.out)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder = state["_folder"]
        (self._folder / "part").write_text(str(os.getpid()))
        (self._folder / "part").rename(self._folder / "pid")
        while not (self._folder / "go").exists():
            time.sleep(0.01)

    def __getitem__(self, request: Request) -> None:
        (self._folder / "hangs").touch()
        time.sleep(600)


def take_from_one_that_stalls(config: RunConfig) -> None:
    """In a process of its own."""
    stream_module.Loader = Stalls  # type: ignore[assignment, misc]
    with opened(config) as batches:
        next(batches.take(1))


@pytest.mark.parametrize("when", ["while it starts", "while a decoder hangs"])
def test_a_worker_does_not_outlive_a_killed_rank(when: str, small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, data={"workers": 1, "prefetch": 1})
    rank = multiprocessing.get_context("spawn").Process(target=take_from_one_that_stalls, args=(config,))
    rank.start()
    awaited = tmp_path / ("pid" if when == "while it starts" else "hangs")
    if awaited.name == "hangs":
        (tmp_path / "go").touch()
    until(awaited.exists)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    rank.kill()
    rank.join()
    (tmp_path / "go").touch()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_little_shared_memory_is_said_before_anything_starts(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), data={"workers": 1, "prefetch": 10_000_000})
    with pytest.raises(
        DataError,
        match=r"need [\d,.]+ MiB of shared memory, and /dev/shm has [\d,.]+ MiB free: lower data.workers",
    ):
        taken(config, 1)


def test_skipped_samples_are_written_once_whatever_is_taken_again(
    small_dataset: Path, tmp_path: Path
) -> None:
    from pretrain.data.bad import BadSamples
    from pretrain.progress import Progress
    from pretrain.strategy.base import World

    progress, world = Progress(), World(0, 1, CPU)
    data = DataConfig(shards="x", max_bad_samples=5, exclude=("id3",))
    before = BadSamples(tmp_path, world, data, resumed_at=0)
    for step in (3, 7, 9):
        before.note(step, ((f"id{step}", "planted"), ("twice", "planted")))
    before.gather(progress)
    assert (progress.bad_samples, progress.bad_ids) == (6, ["id3", "id7", "id9", "twice"])
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"step": 1')  # a crash
    after = BadSamples(tmp_path, world, data, resumed_at=7)
    after.note(9, (("id9", "planted"),))
    after.gather(progress)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    kept = [(3, "id3"), (3, "twice"), (7, "id7"), (7, "twice")]
    assert [(line["step"], line["id"]) for line in lines] == [*kept, (9, "id9")]
    after.note(12, (("new", "planted"), ("newer", "planted"), ("newest", "planted")))
    with pytest.raises(
        DataError, match=r"6 samples could not be read, more than data.max_bad_samples = 5: new: planted"
    ):
        after.gather(progress)
