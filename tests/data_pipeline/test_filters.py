import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from data_pipeline.config import FilterConfig
from data_pipeline.filters import near_duplicates, reason_to_leave_out
from data_pipeline.scores import Scores

Words = np.ndarray
GOOD = Scores(brightness=0.4, black=0.0, frozen=0.0, motion=0.1, phash="0" * 48)


def to_hex(hashes: Words) -> list[str]:
    return [row.tobytes().hex() for row in hashes]


def random_hashes(rng: np.random.Generator, num: int) -> Words:
    return rng.integers(0, 2**64, (num, 3), dtype=np.uint64)


def flips(rng: np.random.Generator, distances: np.ndarray) -> Words:
    """For each distance 192 bits of which that many are set."""
    ranks = np.argsort(np.argsort(rng.random((len(distances), 192)), axis=1), axis=1)
    return np.packbits(ranks < distances[:, None], axis=1).view(np.uint64)


def compare_with_all(hashes: Words, max_distance: int) -> list[int]:
    """The rule as it is worded."""
    is_kept = np.zeros(len(hashes), bool)
    answer = []
    for index, one in enumerate(hashes):
        is_near = np.bitwise_count(hashes[:index] ^ one).sum(axis=1) <= max_distance
        near = np.flatnonzero(is_near & is_kept[:index])
        answer.append(int(near[0]) if len(near) else -1)
        is_kept[index] = len(near) == 0
    return answer


def planted(rng: np.random.Generator) -> Words:
    """3,000 random hashes, half of them at a distance of 0 to 12 from an earlier or later one."""
    hashes = random_hashes(rng, 3000)
    to, source = rng.permutation(3000)[:1500], rng.integers(0, 3000, 1500)
    hashes[to] = hashes[source] ^ flips(rng, rng.integers(0, 13, 1500))
    return hashes


def crowded(rng: np.random.Generator) -> Words:
    """2,500 hashes around one centre, near and not quite, so that keys are shared by most."""
    return random_hashes(rng, 1) ^ flips(rng, rng.integers(0, 11, 2500))


def mixed(rng: np.random.Generator) -> Words:
    return rng.permutation(np.concatenate([planted(rng), crowded(rng)]))


@pytest.mark.parametrize("make", [planted, crowded, mixed])
@pytest.mark.parametrize("max_distance", [0, 1, 4, 5, 9, 10])
def test_near_duplicates_are_those_of_comparing_each_clip_with_all_kept(
    make: Callable[[np.random.Generator], Words], max_distance: int
) -> None:
    hashes = make(np.random.default_rng(max_distance))
    expected = compare_with_all(hashes, max_distance)
    assert near_duplicates(to_hex(hashes), max_distance).tolist() == expected
    assert sum(target >= 0 for target in expected) > 50


def test_a_chain_is_cut_where_its_link_was_left_out() -> None:
    links = np.zeros((3, 3), np.uint64)
    links[1, 0], links[2, 0] = 0b111, 0b111111  # 3 apart each, the ends 6
    assert near_duplicates(to_hex(links), 4).tolist() == [-1, 0, -1]
    assert near_duplicates(to_hex(links[[1, 0, 2]]), 4).tolist() == [-1, 0, 0]


def test_clips_without_a_hash_are_kept_and_nobodys_duplicates() -> None:
    assert near_duplicates(["", "0" * 48, "", "0" * 48], 4).tolist() == [-1, -1, -1, 1]
    assert near_duplicates([], 4).tolist() == []
    assert near_duplicates(["", ""], 0).tolist() == [-1, -1]


def test_a_hash_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="48 hex digits"):
        near_duplicates(["0" * 48, "0" * 16], 4)


@pytest.mark.parametrize("max_distance", [4, 10])
def test_a_hundred_thousand_alike_are_as_quick_as_others(max_distance: int) -> None:
    """There are 5,000,000,000 pairs of these; a list of them fills the memory."""
    rng = np.random.default_rng(0)
    assert set(near_duplicates(["ab" * 24] * 100_000, max_distance)[1:].tolist()) == {0}
    # around one centre, so that every two are near: distances of at most half the limit
    near = random_hashes(rng, 1) ^ flips(rng, rng.integers(0, max_distance // 2 + 1, 100_000))
    assert set(near_duplicates(to_hex(near), max_distance)[1:].tolist()) == {0}


def test_still_clips_whose_three_hashes_are_one_are_as_exact() -> None:
    rng = np.random.default_rng(1)
    hashes = np.repeat(rng.integers(0, 2**64, (3000, 1), dtype=np.uint64), 3, axis=1)
    hashes[2000:] = hashes[:1000] ^ flips(rng, rng.integers(0, 13, 1000))
    assert near_duplicates(to_hex(hashes), 10).tolist() == compare_with_all(hashes, 10)


def test_a_clip_at_each_limit_is_kept_and_one_past_it_is_not() -> None:
    config = FilterConfig(max_black=0.5, max_frozen=0.9, min_motion=0.02)
    at_limits = Scores(brightness=0.1, black=0.5, frozen=0.9, motion=0.02, phash="")
    assert reason_to_leave_out(at_limits, config) is None
    good = Scores(brightness=0.1, black=0.0, frozen=0.0, motion=1.0, phash="")
    past = {
        "black": dataclasses.replace(good, black=0.87),
        "frozen": dataclasses.replace(good, frozen=0.95),
        "motion": dataclasses.replace(good, motion=0.01),
    }
    sentences = {rule: reason_to_leave_out(scores, config) for rule, scores in past.items()}
    assert sentences == {
        "black": "black: 87 % of its frames are black, filters.max_black is 0.5",
        "frozen": "frozen: 95 % of its frames equal the one before, filters.max_frozen is 0.9",
        "motion": "motion: its brightness changes by 0.01 a second, filters.min_motion is 0.02",
    }


def test_the_first_rule_that_fails_gives_the_reason_and_null_turns_a_rule_off() -> None:
    bad = Scores(brightness=0.0, black=1.0, frozen=1.0, motion=0.0, phash="")
    limits: dict[str, float | None] = {"max_black": 0.5, "max_frozen": 0.5, "min_motion": 0.5}
    for rule, key in (("black", "max_black"), ("frozen", "max_frozen"), ("motion", "min_motion")):
        reason = reason_to_leave_out(bad, FilterConfig.model_validate(limits))
        assert reason is not None and reason.startswith(f"{rule}: ")
        limits[key] = None
    assert reason_to_leave_out(bad, FilterConfig.model_validate(limits)) is None
    assert reason_to_leave_out(GOOD, FilterConfig()) is None
