"""The order of samples as a function of seed and position: nothing is remembered, anything can be resumed.

The stream is endless: epoch after epoch, each a permutation of all samples. Shards are permuted, then
samples are shuffled inside a window of shards, so that reads stay local. A position p of the stream is
epoch p // n, place p % n; the state of a run is the number of samples its optimizer has consumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pretrain.rng import stream


def epoch_order(seed: int, epoch: int, shard_sizes: Sequence[int], window: int) -> np.ndarray:
    """Sample numbers (n,) of one epoch; sample numbers count through the shards in their own order."""
    rng = stream(seed, "order", epoch)
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = rng.permutation(len(sizes))
    parts = []
    for first in range(0, len(shards), window):
        some = shards[first : first + window]
        numbers = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in some])
        rng.shuffle(numbers)
        parts.append(numbers)
    return np.concatenate(parts)


class Order:
    """Sample numbers at positions of the endless stream; keeps the last two epochs' permutations."""

    def __init__(self, seed: int, shard_sizes: Sequence[int], window: int) -> None:
        self._seed, self._sizes, self._window = seed, list(shard_sizes), window
        self.num_samples = sum(self._sizes)
        self._epochs: dict[int, np.ndarray] = {}

    def at(self, position: int) -> int:
        """The sample number at a position of the stream."""
        epoch, place = divmod(position, self.num_samples)
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = epoch_order(self._seed, epoch, self._sizes, self._window)
        return int(self._epochs[epoch][place])


def batch_digest(keys: Sequence[str]) -> str:
    """Hash of a global batch's sample ids in order: equal for equal batches, whatever the world size."""
    return hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest()
