"""The stream of samples: complete, elastic, resumable."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.storage import Storage
from pretrain.config import plan
from pretrain.data.order import Order, batch_digest, epoch_order
from pretrain.data.reader import ClipReader
from pretrain.data.stream import Batches, RankPlaces
from tests.small_dataset import tiny_config

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, window=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sample_once(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = epoch_order(seed, epoch, sizes, window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert np.array_equal(order, epoch_order(seed, epoch, sizes, window))


def test_samples_stay_within_their_window_of_shards() -> None:
    sizes = [10] * 6
    shards = epoch_order(3, 0, sizes, 2) // 10
    for first in range(0, 60, 20):
        assert len(set(shards[first : first + 20])) == 2


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(s, e, [50], 1)) for s, e in [(0, 0), (0, 1), (1, 0)]}
    assert len(orders) == 3


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, positions=st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_position_means_one_sample_in_whatever_order_it_is_asked_for(
    sizes: list[int], positions: list[int]
) -> None:
    order, total = Order(0, sizes, 2), sum(sizes)
    for position in positions:
        assert order.at(position) == epoch_order(0, position // total, sizes, 2)[position % total]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_ranks_together_hold_the_global_batch_whatever_their_number(world: int) -> None:
    config = tiny_config(
        Path("x"), Path("y"), train={"global_batch": 12, "micro_batch": 1}, strategy={"kind": "deepspeed"}
    )
    laid_out = plan(config, world)
    for step in range(3):
        places = []
        for rank in range(world):
            batches = list(islice(RankPlaces(laid_out, rank, 0, 0), (step + 1) * laid_out.micro_batches))
            places += batches[step * laid_out.micro_batches :]
        assert [p for batch in places for p in batch] == [(step, p) for p in range(12 * step, 12 * step + 12)]


def keys_of(config_changes: dict[str, int], small_dataset: Path, steps: int, start: int = 0) -> list[str]:
    config = tiny_config(small_dataset, Path("runs"), data=config_changes)
    laid_out = plan(config, 1)
    batches = Batches(laid_out, 0, torch.device("cpu"))
    batches.seek(start, start * config.train.global_batch)
    found = [
        key for _ in range(steps) for batch in batches.take(laid_out.micro_batches) for key in batch.keys
    ]
    batches.close()
    return found


def test_ids_do_not_depend_on_workers_and_a_resume_yields_the_next_unseen_clip(small_dataset: Path) -> None:
    whole = keys_of({"workers": 0}, small_dataset, 8)
    assert keys_of({"workers": 2}, small_dataset, 8) == whole
    assert keys_of({"workers": 0}, small_dataset, 3, start=5) == whole[20:]
    assert len(set(whole[:23])) == 23, "23 clips: the first epoch has no doubles"


def test_the_digest_is_that_of_the_global_batch(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"))
    batches = Batches(plan(config, 1), 0, torch.device("cpu"))
    assert batches.digest(8) == batch_digest(keys_of({"workers": 0}, small_dataset, 1, start=2))


def test_an_unreadable_clip_is_replaced_the_same_way_every_time(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = keys_of({"workers": 0}, small_dataset, 5)
    bad_key, read = whole[6], ClipReader.read

    def fails(self: ClipReader, number: int, *args: object, **kwargs: object) -> object:
        if self.keys[number] == bad_key:
            raise DataError("planted")
        return read(self, number, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipReader, "read", fails)
    first = keys_of({"workers": 0}, small_dataset, 5)
    assert first == keys_of({"workers": 0}, small_dataset, 5)
    assert [n for n, (a, b) in enumerate(zip(whole, first, strict=True)) if a != b] == [6]


def test_frames_follow_the_clips_own_clock_and_states_go_with_them(small_dataset: Path) -> None:
    reader = ClipReader(str(small_dataset), "train")
    every, half = reader.read(0, 8, 8.0), reader.read(0, 4, 4.0)
    assert np.array_equal(half.frames_THWC, every.frames_THWC[::2])
    assert half.state is not None and every.state is not None
    assert np.array_equal(half.state, every.state[::2])
    late = reader.read(0, 4, 8.0, start=lambda spare: spare)
    assert np.array_equal(late.frames_THWC, every.frames_THWC[4:])
    with pytest.raises(DataError, match=r"lasts 1.00 s; 16 frames at 8 a second need 2.00 s"):
        reader.read(0, 16, 8.0)


def test_a_truncated_tar_is_an_error_not_a_picture(small_dataset: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_dataset, copy)
    tar = Storage(copy).local_path("shards/train-000000.tar")
    assert tar is not None
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut short"):
        ClipReader(str(copy), "train").read(6, 8, 8.0)
