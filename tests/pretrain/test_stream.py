"""The stream of batches: the same for any number of workers, never a sample short, never silent."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from data_pipeline.errors import ConfigError, DataError, StorageError
from data_pipeline.format import tar_name
from launch.train import run_train
from pretrain.config import DataConfig, RunConfig, plan
from pretrain.data import stream as stream_module
from pretrain.data.corpus import Corpus
from pretrain.data.load import Request
from pretrain.data.order import digest_of
from pretrain.data.reader import ClipReader, Sample
from pretrain.data.stream import Batches, gone
from pretrain.objective.base import Batch
from pretrain.strategy.base import Engine
from pretrain.tracking.jsonl import read_metrics
from tests.pretrain.test_cache import until
from tests.small_dataset import tiny_config, write_dataset

CPU = torch.device("cpu")


@contextmanager
def opened(config: RunConfig, *, world: int = 1, rank: int = 0, step: int = 0) -> Iterator[Batches]:
    batches = Batches(plan(config, world), rank, CPU)
    batches.seek(step, step * config.train.global_batch)
    try:
        yield batches
    finally:
        batches.close()


def taken(config: RunConfig, steps: int, **where: int) -> list[list[dict[str, Any]]]:
    """Everything in each step's micro-batches, copied before the next is taken."""
    laid_out = plan(config, where.get("world", 1))
    with opened(config, **where) as batches:
        return [[copied(batch) for batch in batches.take(laid_out.micro_batches)] for _ in range(steps)]


def copied(batch: Batch) -> dict[str, Any]:
    found = {
        "step": batch.step,
        "positions": batch.positions,
        "keys": batch.keys,
        "bad": batch.bad,
        "clips": batch.clips.clone(),
        "kept": batch.masks.kept_M.clone(),
        "hidden": batch.masks.hidden_P.clone(),
        "lengths": (batch.masks.kept_lengths, batch.masks.hidden_lengths),
    }
    return found | {"states": batch.states, "actions": batch.actions}


def assert_equal(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip((b for s in ours for b in s), (b for s in theirs for b in s), strict=True):
        for name, value in our.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, their[name]), name
            else:
                assert value == their[name]


def keys_of(config: RunConfig, steps: int, **where: int) -> list[str]:
    return [key for step in taken(config, steps, **where) for batch in step for key in batch["keys"]]


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int, small_dataset: Path) -> None:
    """Nor on how many they keep ready; and slots written again do not change what was taken from them."""
    alone = tiny_config(small_dataset, Path("runs"), data={"workers": 0})
    several = tiny_config(small_dataset, Path("runs"), data={"workers": workers, "prefetch": 1 + workers % 2})
    assert_equal(taken(several, 9), taken(alone, 9))


def test_a_resume_goes_on_with_the_next_unseen_clip(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), data={"workers": 0})
    whole = taken(config, 8)
    assert_equal(taken(config, 3, step=5), whole[5:])
    keys = [key for step in whole for batch in step for key in batch["keys"]]
    assert len(set(keys[:23])) == 23, "23 clips: the first epoch has no doubles"


def test_ranks_together_see_what_one_sees(small_dataset: Path) -> None:
    config = tiny_config(
        small_dataset,
        Path("runs"),
        train={"global_batch": 12, "micro_batch": 1},
        strategy={"kind": "deepspeed"},
    )
    alone = keys_of(config, 2)
    for world in (2, 3, 4, 6):
        ranks = [taken(config, 2, world=world, rank=rank) for rank in range(world)]
        together = [b["keys"][0] for step in range(2) for rank in ranks for b in rank[step]]
        assert together == alone


def test_crops_starts_and_masks_belong_to_the_sample_not_to_its_place_in_a_batch(small_dataset: Path) -> None:
    """The same clips in micro-batches of another size."""
    small = tiny_config(small_dataset, Path("runs"), train={"micro_batch": 1}, data={"frames": 4})
    large = tiny_config(small_dataset, Path("runs"), train={"micro_batch": 4}, data={"frames": 4})
    ones = torch.cat([batch["clips"] for step in taken(small, 4) for batch in step])
    fours = torch.cat([batch["clips"] for step in taken(large, 4) for batch in step])
    assert torch.equal(ones, fours)


def test_each_epoch_crops_a_clip_anew(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), train={"global_batch": 23, "micro_batch": 23})
    first, second = (dict(zip(b["keys"], b["clips"], strict=True)) for s in taken(config, 2) for b in s)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[key], second[key]) for key in first)


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


def test_stops_and_other_ranks_lose_and_double_nothing_with_workers(small_dataset: Path) -> None:
    """Two legs, over two ranks and over three, with workers of their own: the ids of one process without."""
    train = {"global_batch": 12, "micro_batch": 2}
    alone = keys_of(tiny_config(small_dataset, Path("runs"), train=train), 3)
    found, done = [], 0
    for world, workers, steps in [(2, 2, 2), (3, 1, 1)]:
        config = tiny_config(
            small_dataset,
            Path("runs"),
            train=train,
            strategy={"kind": "deepspeed"},
            data={"workers": workers},
        )
        ranks = [taken(config, steps, world=world, rank=rank, step=done) for rank in range(world)]
        found += [key for step in range(steps) for rank in ranks for b in rank[step] for key in b["keys"]]
        done += steps
    assert found == alone


def mixture(first: Path, second: Path, **data: Any) -> RunConfig:
    shards = [{"shards": str(first), "weight": 0.75}, {"shards": str(second), "weight": 0.25}]
    return tiny_config(
        first, Path("runs"), data={"shards": shards, **data}, train={"global_batch": 8, "micro_batch": 4}
    )


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures: clips of one frame, as JPEG."""
    root = tmp_path_factory.mktemp("stills") / "stills"
    return write_dataset(root, {"train": [3, 2]}, num_frames=1, encoding="jpeg", first_number=1000)


def test_a_mixture_keeps_its_proportions_repeats_the_small_set_and_resumes(
    small_dataset: Path, stills: Path
) -> None:
    config = mixture(small_dataset, stills)
    whole = taken(config, 12)
    for step in whole:
        keys = [key for batch in step for key in batch["keys"]]
        assert sum(int(key, 16) >= 1000 for key in keys) == 2
    pictures = [key for step in whole for b in step for key in b["keys"] if int(key, 16) >= 1000]
    assert [sorted(pictures[k : k + 5]) for k in (0, 5, 10)] == [sorted(set(pictures))] * 3, (
        "epochs of its own"
    )
    assert_equal(taken(config, 4, step=8), whole[8:])


def test_pictures_and_clips_share_a_batch(small_dataset: Path, stills: Path) -> None:
    for batch in taken(mixture(small_dataset, stills), 2)[0]:
        for key, clip in zip(batch["keys"], batch["clips"], strict=True):
            is_still = torch.equal(clip, clip[:, :1].expand_as(clip))
            assert is_still == (int(key, 16) >= 1000)


def test_a_data_set_named_twice_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    with pytest.raises(ConfigError, match="each data set once, with the sum of its weights"):
        Corpus(mixture(small_dataset, copy).data, 0)


def test_a_run_goes_on_with_another_batch_from_the_same_position(small_dataset: Path, tmp_path: Path) -> None:
    """4 steps of 4 clips, then 2 steps of 6, where that is allowed by name."""
    first = tiny_config(small_dataset, tmp_path, train={"steps": 4})
    run = run_train(first, quiet=True).run
    changed = tiny_config(small_dataset, tmp_path, train={"steps": 6, "global_batch": 6})
    with pytest.raises(
        ConfigError, match=r"global_batch is 6: need 4(.|\n)*--allow-change train.global_batch"
    ):
        run_train(changed, quiet=True)
    run_train(changed, quiet=True, allow_change=["train.global_batch"])
    corpus = Corpus(first.data, first.seed)
    expected = []
    for begin, end in [(0, 4), (4, 8), (8, 12), (12, 16), (16, 22), (22, 28)]:
        places = range(begin, end)
        digest = digest_of((p, corpus.name(corpus.spot(p))) for p in places) % (1 << 64)
        expected.append(f"{digest:016x}")
    assert [line["batch_digest"] for line in read_metrics(run)] == expected


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


def test_a_mixture_has_a_fingerprint_and_epochs_of_its_own(small_dataset: Path, stills: Path) -> None:
    one = Corpus(tiny_config(small_dataset, Path("runs")).data, 0)
    both = Corpus(mixture(small_dataset, stills).data, 0)
    assert one.fingerprint == one.readers[0].info.fingerprint
    assert one.epochs(46) == {"": 2.0}
    assert both.epochs(92) == {"/small": 3.0, "/stills": 4.6}
    swapped = mixture(small_dataset, stills).data.model_copy(
        update={"shards": tuple(reversed(mixture(small_dataset, stills).data.sources))}
    )
    assert len({one.fingerprint, both.fingerprint, Corpus(swapped, 0).fingerprint}) == 3


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
        DataError, match=r"need \d+ MiB of shared memory: .*No space left.* lower data.workers"
    ):
        taken(config, 1)


def test_a_cache_too_small_for_two_windows_is_refused(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipReader, "is_cached", True)
    with pytest.raises(ConfigError, match=r"data.cache_bytes is 1000: need at least \d+: two windows"):
        Corpus(tiny_config(small_dataset, Path("runs"), data={"cache_bytes": 1000}).data, 0)


def test_seconds_of_each_stage_and_of_waiting_are_told(small_dataset: Path) -> None:
    with opened(tiny_config(small_dataset, Path("runs"))) as batches:
        list(batches.take(4))
        stages = batches.take_stage_ms()
        assert list(stages) == ["read", "decode", "crop", "mask"]
        assert all(ms > 0 for ms in stages.values())
        assert 8 * sum(stages.values()) <= 1000 * batches.take_wait_s() * 1.01, (
            "without workers it all is waited for"
        )
        assert not any(batches.take_stage_ms().values())


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


def test_states_come_with_the_clips_and_not_where_one_has_none(small_dataset: Path) -> None:
    batch = taken(tiny_config(small_dataset, Path("runs")), 1)[0][0]
    reader = ClipReader(str(small_dataset), "train")
    numbers = [int(key, 16) for key in batch["keys"]]
    expected = np.stack([reader.read(number, 8, 8.0).state for number in numbers])  # type: ignore[arg-type]
    assert np.array_equal(batch["states"].numpy(), expected)
    assert batch["actions"].shape[:2] == (2, 8)
