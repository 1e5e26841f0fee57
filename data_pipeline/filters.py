"""Which clips are left out: by a clip's own scores, and as near-duplicates of clips that come before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import FilterConfig
from data_pipeline.scores import Scores

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

HASH_BITS = 192
HASH_DIGITS = HASH_BITS // 4
MIN_BANDS = 6  # 32 bits each: two of them are a key of 64
SMALL = 1024  # hashes among which all pairs are compared
PAIRS_AT_ONCE = 1 << 20  # candidates compared at once: 50 MB of gathered hashes
PAIRS_PER_HASH = 32  # where more candidates than this many for each hash meet, halves are decided in turn
PAIRS_IN_CACHE = 1 << 16  # compared at once where all are
KEY_GAIN = 32  # a pair that is looked up by keys costs as much as this many of all pairs in turn
MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: any odd number serves


def reason_to_leave_out(scores: Scores, config: FilterConfig) -> str | None:
    """One sentence that starts with the rule's name, of the first rule that a clip fails; None to keep it.

    A score that is None, as frozen and motion of a picture, fails no rule.
    """
    if config.max_black is not None and scores.black > config.max_black:
        return (
            f"black: {_percent(scores.black)} of its frames are black, "
            f"filters.max_black is {config.max_black:g}"
        )
    if config.max_frozen is not None and scores.frozen is not None and scores.frozen > config.max_frozen:
        return (
            f"frozen: {_percent(scores.frozen)} of its frames equal the one before, "
            f"filters.max_frozen is {config.max_frozen:g}"
        )
    if config.min_motion is not None and scores.motion is not None and scores.motion < config.min_motion:
        return (
            f"motion: its brightness changes by {scores.motion:.4g} a second, "
            f"filters.min_motion is {config.min_motion:g}"
        )
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def near_duplicates(phashes: Sequence[str], max_distance: int) -> Ints:
    """For each clip the first clip that is kept before it and differs in at most `max_distance` bits, or -1.

    phashes: of 48 hex digits, in order of priority; a clip without one ("") is kept and has no duplicates.
    Exact: as if each clip were compared with all those kept so far.
    Raises: ValueError for another length.
    """
    duplicate_of = np.full(len(phashes), -1, np.int64)
    wrong = next((text for text in phashes if len(text) not in (0, HASH_DIGITS)), None)
    if wrong is not None:
        raise ValueError(f"a perceptual hash is {HASH_DIGITS} hex digits or none, not {wrong!r}")
    present = np.flatnonzero(np.fromiter((bool(text) for text in phashes), bool, len(phashes)))
    if len(present) == 0:
        return duplicate_of
    digits = bytes.fromhex("".join(phashes))
    hashes = np.frombuffer(digits, np.uint64).reshape(-1, HASH_BITS // 64)
    first, same = _collapse(hashes)
    of_distinct = _Greedy(hashes[first], max_distance).run()
    target = np.where(of_distinct < 0, np.arange(len(first)), of_distinct)[same]
    is_kept = target == same
    is_kept &= first[same] == np.arange(len(hashes))
    duplicate_of[present] = np.where(is_kept, -1, present[first[target]])
    return duplicate_of


def _collapse(hashes: Words) -> tuple[Ints, Ints]:
    """Rows of the first of each distinct hash, ascending, and for each row which of those it equals."""
    order = np.lexsort(hashes.T)  # stable: equal hashes stay in order
    ordered = hashes[order]
    starts = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    first = order[starts]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    same = np.empty(len(hashes), np.int64)
    same[order] = rank[np.cumsum(starts) - 1]
    return np.sort(first), same


class _Greedy:
    """The greedy rule over distinct hashes, in order.

    Hashes that differ in at most D bits agree in at least two of D + 2 bands of bits, so only hashes that
    agree in a pair of bands are compared. Where too many do, halves are decided one after the other: what the
    first keeps takes its duplicates out of the second before those meet each other.
    """

    def __init__(self, hashes: Words, max_distance: int) -> None:
        self._hashes = hashes
        self._max_distance = max_distance
        # Shuffled, as a bit of a still clip's first frame is the same bit of its second and third.
        bits = np.random.default_rng(HASH_BITS).permutation(HASH_BITS)
        octets = np.ascontiguousarray(hashes.view(np.uint8).T)
        self._bands = [_band(octets, band) for band in np.array_split(bits, max(MIN_BANDS, max_distance + 2))]
        self._duplicate_of = np.full(len(hashes), -1, np.int64)

    def run(self) -> Ints:
        """For each hash the first kept one before it within the distance, or -1."""
        if self._max_distance > 0:
            self._decide(np.arange(len(self._hashes)))
        return self._duplicate_of

    def _decide(self, which: Ints) -> None:
        """Apply the rule among `which`: ascending, none of them near one that was kept before."""
        if len(which) == 0:
            return
        pairs = self._pairs_among(which)
        if pairs is None:
            first, second = np.split(which, [len(which) // 2])
            self._decide(first)
            self._remove(second, self._kept(first))
            self._decide(self._kept(second))
            return
        target = np.full(len(which), -1, np.int64).tolist()
        for later, earlier in pairs.tolist():
            if target[later] < 0 and target[earlier] < 0:
                target[later] = earlier
        found = np.array(target, np.int64)
        self._duplicate_of[which] = np.where(found < 0, -1, which[found])

    def _kept(self, which: Ints) -> Ints:
        return which[self._duplicate_of[which] < 0]

    def _remove(self, later: Ints, kept: Ints) -> None:
        """Give each of `later` that is near one of `kept` the first such."""
        best = np.full(len(later), len(kept))
        for two, one in self._near_between(later, kept):
            np.minimum.at(best, two, one)
        is_near = best < len(kept)
        self._duplicate_of[later[is_near]] = kept[best[is_near]]

    def _pairs_among(self, which: Ints) -> Ints | None:
        """All pairs (later, earlier) of positions in `which` within the distance, (n, 2) and sorted.

        None when there are too many candidates to look at.
        """
        if len(which) <= SMALL:
            near = list(self._compare_all(which, which))
            later, earlier = (np.concatenate(ends) for ends in zip(*near, strict=True))
            is_once = earlier < later
            return np.stack([later[is_once], earlier[is_once]], axis=1)
        found = np.empty(0, np.int64)
        num_left = PAIRS_PER_HASH * len(which)
        for keys in self._keys(which):
            ordered, order = _sort(keys)
            ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
            sizes = np.diff(ends, prepend=0)
            num_after = np.repeat(ends, sizes) - np.arange(len(which)) - 1  # behind each with its key
            num_left -= int(num_after.sum())
            if num_left < 0:
                return None
            starts = np.flatnonzero(num_after)
            for row, place in _spread(starts + 1, num_after[starts]):
                earlier, later = order[starts[row]], order[place]  # equal keys lie in order
                is_near = self._are_near(which[earlier], which[later])
                found = np.append(found, later[is_near] * len(which) + earlier[is_near])
            found = np.unique(found)
        return np.stack(np.divmod(found, len(which)), axis=1)

    def _near_between(self, later: Ints, kept: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Pairs of positions in `later` and in `kept` within the distance, each at least once."""
        num_left = later.size * kept.size // KEY_GAIN
        for keys, kept_keys in zip(self._keys(later), self._keys(kept), strict=True):
            ordered, order = _sort(keys)
            kept_ordered, kept_order = _sort(kept_keys)
            starts = np.searchsorted(kept_ordered, ordered, side="left")
            counts = np.searchsorted(kept_ordered, ordered, side="right") - starts
            num_left -= int(counts.sum())
            if num_left < 0:
                yield from self._compare_all(later, kept)
                return
            rows = np.flatnonzero(counts)
            for row, place in _spread(starts[rows], counts[rows]):
                two, one = order[rows[row]], kept_order[place]
                is_near = self._are_near(later[two], kept[one])
                yield two[is_near], one[is_near]

    def _keys(self, which: Ints) -> Iterator[NDArray[np.uint32]]:
        """For each pair of bands a number of 32 bits that is equal where both bands are."""
        bands = [band[which] for band in self._bands]
        for one, two in itertools.combinations(bands, 2):
            mixed = one.astype(np.uint64)
            mixed <<= np.uint64(32)
            mixed |= two
            mixed *= MIX
            mixed >>= np.uint64(32)
            yield mixed.astype(np.uint32)

    def _are_near(self, one: Ints, two: Ints) -> NDArray[np.bool_]:
        different = self._hashes[one] ^ self._hashes[two]
        return np.bitwise_count(different).sum(axis=1, dtype=np.uint8) <= self._max_distance

    def _compare_all(self, first: Ints, second: Ints) -> Iterator[tuple[Ints, Ints]]:
        """All pairs of positions in `first` and `second` within the distance, by comparing all."""
        words = self._hashes[second].T.copy()
        num_rows = max(1, PAIRS_IN_CACHE // len(second))
        for start in range(0, len(first), num_rows):
            rows = self._hashes[first[start : start + num_rows]]
            distance = np.zeros((len(rows), len(second)), np.uint8)
            for word in range(HASH_BITS // 64):
                distance += np.bitwise_count(rows[:, word, None] ^ words[word])
            one, two = np.nonzero(distance <= self._max_distance)
            yield one + start, two


def _band(octets: NDArray[np.uint8], bits: Ints) -> NDArray[np.uint32]:
    """Some bits of each hash, at most 32, as a number. octets: (24, n)."""
    number = np.zeros(octets.shape[1], np.uint32)
    for bit in bits:
        number <<= np.uint32(1)
        number |= octets[bit // 8] >> np.uint8(bit % 8) & np.uint8(1)
    return number


def _sort(keys: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], Ints]:
    """Sorted keys and where they were; equal keys stay in order. Faster than an argsort by far."""
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return (packed >> np.uint64(32)).astype(np.uint32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _spread(starts: Ints, counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """For each row r the numbers from starts[r], counts[r] many, as (rows, numbers), some rows at a time."""
    total = np.cumsum(counts)
    done = 0
    while done < len(counts):
        before = int(total[done - 1]) if done else 0
        stop = max(done + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, side="right")))
        some = counts[done:stop]
        rows = np.repeat(np.arange(done, stop), some)
        yield rows, starts[rows] + np.arange(len(rows)) - (total[rows] - counts[rows] - before)
        done = stop
