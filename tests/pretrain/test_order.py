"""The order of samples: complete, elastic, resumable, and the mixture of several data sets."""

from __future__ import annotations

import pickle
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretrain.config import Plan, plan
from pretrain.data.mixture import Mixture
from pretrain.data.order import Order, digest_of
from pretrain.data.stream import RankRequests
from pretrain.rng import stream
from tests.small_dataset import tiny_config

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def whole_epoch(seed: int, epoch: int, sizes: list[int], window: int) -> list[int]:
    """The order as its definition says it, without any thought for time or memory."""
    starts = [sum(sizes[:shard]) for shard in range(len(sizes))]
    shards = stream(seed, "order", epoch).permutation(len(sizes))
    found: list[int] = []
    for number, first in enumerate(range(0, len(sizes), window)):
        inside = [starts[s] + row for s in shards[first : first + window] for row in range(sizes[s])]
        array = np.array(inside)
        stream(seed, "window", epoch, number).shuffle(array)
        found += array.tolist()
    return found


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, window=st.integers(1, 9), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sample_once_in_the_order_defined(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    order, total = Order(seed, sizes, window), sum(sizes)
    found = [order.at(position) for position in range(epoch * total, (epoch + 1) * total)]
    assert sorted(found) == list(range(total))
    assert found == whole_epoch(seed, epoch, sizes, window)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, positions=st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_position_means_one_sample_in_whatever_order_it_is_asked_for(
    sizes: list[int], positions: list[int]
) -> None:
    order, total = Order(0, sizes, 2), sum(sizes)
    again = pickle.loads(pickle.dumps(order))
    for position in positions:
        epoch, place = divmod(position, total)
        assert order.at(position) == again.at(position) == whole_epoch(0, epoch, sizes, 2)[place]


def test_samples_stay_within_their_window_of_shards_and_the_next_window_is_known() -> None:
    order = Order(3, [10] * 6, 2)
    for first in range(0, 120, 20):
        shards = {order.at(position) // 10 for position in range(first, first + 20)}
        assert set(order.upcoming(first)[:2]) == set(order.upcoming(first + 19)[:2]) == shards
        after = {order.at(position) // 10 for position in range(first + 20, first + 40)}
        assert set(order.upcoming(first)) == shards | after


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(Order(s, [50], 1).at(50 * e + k) for k in range(50)) for s, e in [(0, 0), (0, 1), (1, 0)]}
    assert len(orders) == 3


def test_a_replacement_comes_from_the_window_that_is_read() -> None:
    order = Order(0, [5] * 8, 2)
    inside = {order.at(position) for position in range(10, 20)}
    drawn = {order.another(13, np.random.default_rng(k)) for k in range(200)}
    assert drawn == inside


def rank_batches(laid_out: Plan, step: int, samples: int, steps: int) -> list[list[int]]:
    """The positions of each global batch, put together from all ranks' micro-batches."""
    found: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(laid_out.world_size):
        requests = RankRequests(laid_out, rank, step, samples, num_slots=3)
        for number, request in enumerate(islice(requests, steps * laid_out.micro_batches)):
            assert request.step == step + number // laid_out.micro_batches
            assert request.slot == number % 3
            found[number // laid_out.micro_batches] += request.positions
    return found


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_world_any_stop_and_any_batch_see_every_sample_once_an_epoch(data: st.DataObject) -> None:
    """Stops anywhere, goes on with other ranks, other micro-batches and another global batch."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    window, seed = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 99))
    order, total = Order(seed, sizes, window), sum(sizes)
    reference = [n for epoch in range(4) for n in whole_epoch(seed, epoch, sizes, window)]
    step = samples = 0
    seen: list[int] = []
    while len(seen) < 2 * total and step < 200:
        world = data.draw(st.integers(1, 8))
        micro = data.draw(st.integers(1, 3))
        batch = world * micro * data.draw(st.integers(1, 2))
        config = tiny_config(
            Path("x"),
            Path("y"),
            train={"global_batch": batch, "micro_batch": micro},
            strategy={"kind": "deepspeed"},
        )
        steps = data.draw(st.integers(1, 6))
        for positions in rank_batches(plan(config, world), step, samples, steps):
            assert positions == list(range(samples, samples + batch))
            seen += [order.at(position) for position in positions]
            step, samples = step + 1, samples + batch
    assume(len(seen) >= total)
    seen = seen[: len(reference)]
    assert seen == reference[: len(seen)]
    assert sorted(seen[:total]) == list(range(total))


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 1000).map(lambda n: n / 1000), min_size=1, max_size=7))
def test_a_mixture_gives_each_data_set_its_weight_at_any_point_and_leaves_no_gap(
    weights: list[float],
) -> None:
    mixture, total = Mixture(weights), sum(weights)
    given_by = [0] * len(weights)
    for position in range(600):
        assert mixture.counts(position) == given_by
        source, place = mixture.at(position)
        assert place == given_by[source], "its own stream goes on where it stopped"
        given_by[source] += 1
        for count, weight in zip(given_by, weights, strict=True):
            assert abs(count - (position + 1) * weight / total) < 2


@pytest.mark.parametrize("batch", [8, 30, 3072])
def test_every_batch_of_a_mixture_is_within_a_rounding_of_the_weights(batch: int) -> None:
    weights = [0.056, 0.188, 0.318, 0.188, 0.250]
    mixture = Mixture(weights)
    for first in (0, 10**9, 7 * batch):
        before, after = mixture.counts(first), mixture.counts(first + batch)
        for b, a, weight in zip(before, after, weights, strict=True):
            assert abs((a - b) - batch * weight) < 2
    assert mixture.counts(10**12) == [10**12 * Fraction(str(weight)) for weight in weights], "no float drifts"


def test_a_digest_knows_order_and_does_not_know_ranks() -> None:
    batch = [(4, "a"), (5, "b"), (6, "c"), (7, "d")]
    assert digest_of(batch) == digest_of(batch[:2]) + digest_of(batch[2:])
    assert digest_of(batch) != digest_of([(4, "b"), (5, "a"), *batch[2:]])
    assert digest_of(batch) != digest_of([(p + 4, key) for p, key in batch])
