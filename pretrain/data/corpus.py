"""The data sets of a run as one stream of samples: which sample stands at which position."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import ConfigError, DataError
from pretrain.config import DataConfig
from pretrain.data.cache import ShardCache
from pretrain.data.mixture import Mixture
from pretrain.data.order import Order
from pretrain.data.reader import KEPT_INDEXES, ClipReader
from pretrain.rng import stream


@dataclass(frozen=True)
class Spot:
    """A sample: its data set, its number there, and the epoch of that data set."""

    source: int
    number: int
    epoch: int


class Corpus:
    """Readers of the data sets, their orders, and the mixture of them. It can be pickled.

    Raises: DataError as ClipReader does; ConfigError when the cache cannot hold what is read at one time.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._seed, window = seed, data.shuffle_window
        is_remote = any("://" in each.shards for each in data.sources)
        is_cached = is_remote and data.remote == "cache"
        kept = max(KEPT_INDEXES, 2 * window)
        self.readers = []
        for each in data.sources:
            # one a data set, for its own list of what to bring; they share the folder and its limit
            cache = ShardCache(cache_folder(data), data.cache_bytes) if is_cached else None
            self.readers.append(
                ClipReader(
                    each.shards,
                    data.split,
                    cache,
                    decoder=data.decoder,
                    kept_indexes=kept,
                    keep_decoded=data.keep_decoded // (max(1, data.workers) * len(data.sources)),
                )
            )
        prints = [reader.info.fingerprint for reader in self.readers]
        if len(set(prints)) < len(prints):
            raise ConfigError(
                "data.shards",
                got=[each.shards for each in data.sources],
                need="each data set once, with the sum of its weights: two of these hold the same clips, "
                "which would come in pairs",
            )
        self.weights = [each.weight for each in data.sources]
        self._orders = [Order(seed, reader.shard_sizes, window) for reader in self.readers]
        self._mixture = Mixture(self.weights)
        self._asked: dict[int, list[int]] = {}
        needed = sum(reader.cached_bytes(2 * window) for reader in self.readers)
        if needed > data.cache_bytes:
            raise ConfigError(
                "data.cache_bytes",
                got=data.cache_bytes,
                need=f"at least {needed}: two windows of data.shuffle_window = {window} shards are read and "
                f"brought at one time; or a smaller window, or data.remote=ranges",
                try_=(needed,),
            )

    @property
    def fingerprint(self) -> str:
        """Of the only data set; of several, a hash of theirs with their weights."""
        if len(self.readers) == 1:
            return self.readers[0].info.fingerprint
        lines = [f"{r.info.fingerprint} {w}" for r, w in zip(self.readers, self.weights, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def state_names(self) -> tuple[str, ...]:
        """What the columns of states are called, where all data sets agree on it; else empty."""
        named = {tuple(reader.info.state_names) for reader in self.readers}
        return named.pop() if len(named) == 1 else ()

    def epochs(self, position: int) -> dict[str, float]:
        """How often the data was gone through before a position; in a mixture, each data set, as `/name`."""
        counts = self._mixture.counts(position)
        shares = [count / len(reader) for count, reader in zip(counts, self.readers, strict=True)]
        if len(shares) == 1:
            return {"": shares[0]}
        names = [reader.info.name for reader in self.readers]
        return {
            f"/{name}" if names.count(name) == 1 else f"/{name}-{source}": share
            for source, (name, share) in enumerate(zip(names, shares, strict=True))
        }

    def spot(self, position: int) -> Spot:
        """The sample at a position of the stream."""
        source, place = self._mixture.at(position)
        order = self._orders[source]
        return Spot(source, order.at(place), order.epoch(place))

    def another(self, position: int, attempt: int) -> Spot:
        """What stands in for the sample at a position when attempts 0 to `attempt` - 1 cannot be read.

        Of the same data set: from the shards that are read at the time, every fourth time from all of them.
        """
        source, place = self._mixture.at(position)
        order, rng = self._orders[source], stream(self._seed, "replace", position, attempt)
        is_far = attempt % 4 == 0
        number = int(rng.integers(order.num_samples)) if is_far else order.another(place, rng)
        return Spot(source, number, order.epoch(place))

    def name(self, spot: Spot) -> str:
        """The sample's id, or its place where that cannot be read."""
        return self.readers[spot.source].name(spot.number)

    def names(self, positions: Sequence[int]) -> list[str]:
        """The ids of samples, or, from the first on whose index cannot be read, their places."""
        found = []
        can_read = True
        for spot in map(self.spot, positions):
            reader = self.readers[spot.source]
            try:
                found.append(reader.key(spot.number) if can_read else reader.place_name(spot.number))
            except DataError:
                can_read = False
                found.append(reader.place_name(spot.number))
        return found

    def prefetch(self, position: int) -> None:
        """Begin to bring the shards from a position on to this machine, where they are remote."""
        for source, place in enumerate(self._mixture.counts(position)):
            if not self.readers[source].is_cached:
                continue
            shards = self._orders[source].upcoming(place)
            if self._asked.get(source) != shards:
                self.readers[source].prefetch(shards)
                self._asked[source] = shards


def cache_folder(data: DataConfig) -> Path:
    if data.cache_folder is not None:
        return Path(data.cache_folder)
    return Path(tempfile.gettempdir()) / f"foreframe-shards-{os.getuid()}"
