"""The order of samples as a function of seed and position: nothing is remembered, anything can be resumed.

The stream is endless: epoch after epoch, each a permutation of all samples. Shards are permuted, then
samples are shuffled inside a window of shards, so that reads stay local. A position p of the stream is
epoch p // n, place p % n; the state of a run is the number of samples its optimizer has consumed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pretrain.rng import stream

Ints = NDArray[np.int64]


class Order:
    """Sample numbers at positions of the endless stream; they count through the shards in their own order.

    Work and memory go with the number of shards and the size of one window, not with the number of samples.
    """

    def __init__(self, seed: int, shard_sizes: Sequence[int] | Ints, window: int) -> None:
        self._seed, self._window = seed, window
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.num_samples = int(self._sizes.sum())
        self._shards = lru_cache(maxsize=2)(self._shards_of)
        self._numbers = lru_cache(maxsize=3)(self._numbers_of)

    def __reduce__(self) -> tuple[type[Order], tuple[int, Ints, int]]:
        """Without the caches: to workers."""
        return Order, (self._seed, self._sizes, self._window)

    def epoch(self, position: int) -> int:
        return position // self.num_samples

    def at(self, position: int) -> int:
        """The sample number at a position of the stream."""
        epoch, window, place = self._find(position)
        return int(self._numbers(epoch, window)[place])

    def another(self, position: int, rng: np.random.Generator) -> int:
        """A sample number drawn from the window that a position lies in."""
        epoch, window, _ = self._find(position)
        return int(rng.choice(self._numbers(epoch, window)))

    def upcoming(self, position: int) -> list[int]:
        """The shards of the window that a position lies in, then those of the next window."""
        epoch, window, _ = self._find(position)
        firsts = self._shards(epoch)[1]
        following = (epoch, window + 1) if window + 1 < len(firsts) else (epoch + 1, 0)
        found = [*self._of_window(epoch, window), *self._of_window(*following)]
        return list(dict.fromkeys(int(shard) for shard in found))

    def _find(self, position: int) -> tuple[int, int, int]:
        """Epoch, window, and place in the window, of a position."""
        epoch, place = divmod(position, self.num_samples)
        firsts = self._shards(epoch)[1]
        window = bisect_right(firsts, place) - 1
        return epoch, window, place - firsts[window]

    def _shards_of(self, epoch: int) -> tuple[Ints, list[int]]:
        """The permuted shards of an epoch, and the place at which each window of them begins."""
        shards = stream(self._seed, "order", epoch).permutation(len(self._sizes))
        sizes = self._sizes[shards]
        return shards, (np.cumsum(sizes) - sizes)[:: self._window].tolist()

    def _of_window(self, epoch: int, window: int) -> Ints:
        return self._shards(epoch)[0][window * self._window : (window + 1) * self._window]

    def _numbers_of(self, epoch: int, window: int) -> Ints:
        shards = self._of_window(epoch, window)
        numbers = np.concatenate(
            [np.arange(self._sizes[s], dtype=np.int64) + self._starts[s] for s in shards]
        )
        stream(self._seed, "window", epoch, window).shuffle(numbers)
        return numbers


def digest_of(samples: Iterable[tuple[int, str]]) -> int:
    """A sum of 64-bit hashes over (position, sample id).

    Equal for equal batches in equal order; the sum over ranks does not depend on their number.
    """
    total = 0
    for position, key in samples:
        digest = hashlib.blake2b(f"{position} {key}".encode(), digest_size=8).digest()
        total += int.from_bytes(digest, "little")
    return total
