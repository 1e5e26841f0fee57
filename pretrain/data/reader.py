"""Clips of a data set's shards, by number: a ranged read by the index, decoded at the clip's own times.

Only `dataset.json` is read at first; a shard's index when one of its samples is asked for.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode import DecoderName, decode_clip, decode_jpegs, shown_at
from data_pipeline.errors import DataError, RefusedError, StorageError
from data_pipeline.format import (
    ACTIONS,
    META,
    STATE,
    VIDEO,
    ClipMeta,
    Member,
    ShardDone,
    ShardIndex,
    check_files,
    frame_suffix,
    read_index,
    read_info,
    sha256,
    tar_name,
)
from data_pipeline.storage import Storage
from pretrain.config import DataConfig
from pretrain.data.cache import ShardCache
from pretrain.data.decoded import At, Decoded, Seconds

Start = Callable[[float], float]
"""Spare seconds of a clip to the second at which the frames begin."""
KEPT_INDEXES = 64  # of shards; some megabytes each with a JPEG a frame


@dataclass(frozen=True)
class Clip:
    """Frames of one sample with the states and actions of the same times.

    frames_THWC: uint8 at the stored size. times_s: (T,) float64, seconds since the clip's first frame.
    state (T, S), actions (T, A): float32, or None where the sample has none.
    """

    key: str
    frames_THWC: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    state: NDArray[np.float32] | None
    actions: NDArray[np.float32] | None
    meta: ClipMeta


@dataclass(frozen=True)
class Sample:
    """The bytes of one sample as they lie in its tar from offset `first` on. shard: the tar's address."""

    key: str
    shard: str
    members: dict[str, Member]
    first: int
    data: bytes

    def is_whole(self) -> bool:
        """Whether every member has the hash indexed."""
        try:
            return all(self.member(suffix) for suffix in self.members)
        except DataError:
            return False

    def member(self, suffix: str) -> bytes:
        """Raises: DataError when there is no such member, or it is not what the index says."""
        if suffix not in self.members:
            raise DataError(f"sample {self.key} in {self.shard} has no .{suffix} member")
        found = self.members[suffix]
        data = self.data[found.offset - self.first : found.offset - self.first + found.size]
        if sha256(data) != found.sha256:
            raise DataError(
                f"sample {self.key} in {self.shard}: its .{suffix} is damaged: it has not the hash indexed"
            )
        return data


def mean_until_next(actions: NDArray[np.float32], shown: NDArray[np.int64]) -> NDArray[np.float32]:
    """Actions (T, A) from each shown frame to the next shown one: means of those stored in between.

    actions: (F, A), from each stored frame to the next. shown: (T,) stored frames, ascending; one shown twice
    has its own action; the last one's time is as long as that of the one before.
    """
    step = shown[-1] - shown[-2] if len(shown) > 1 else 1
    until = np.minimum(np.maximum(np.append(shown[1:], shown[-1] + step), shown + 1), len(actions))
    sums = np.concatenate([np.zeros((1, actions.shape[1])), np.cumsum(actions, axis=0, dtype=np.float64)])
    means: NDArray[np.float32] = ((sums[until] - sums[shown]) / (until - shown)[:, None]).astype(np.float32)
    return means


def _raise_if_not_of_a_sample(error: DataError) -> None:
    """A store that is away, a full disk, too many open files: which samples it hits is chance.

    Raises: StorageError, RefusedError.
    """
    if isinstance(error, (StorageError, RefusedError)):
        raise error
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
        raise StorageError(str(error)) from error


class ClipReader:
    """The samples of one split, in the order of their shards.

    cache: where shards of a remote data set are kept; None reads the samples' ranges. decoder: of mp4.
    keep_decoded: bytes of memory in which clips stay decoded, if all are likely to fit.
    It can be pickled.
    Raises: DataError when the data set is not finished, or has no shard of the split.
    """

    def __init__(
        self,
        root: str,
        split: str,
        cache: ShardCache | None = None,
        *,
        decoder: DecoderName = "auto",
        kept_indexes: int = KEPT_INDEXES,
        keep_decoded: int = 0,
    ) -> None:
        self._storage = Storage(root)
        self._cache = None if self._storage.is_local else cache
        self._decoder, self._kept_indexes = decoder, kept_indexes
        self.info = read_info(self._storage)
        self.shards = self.info.shards_of(split)
        if not self.shards:
            raise DataError(f"{root} has no {split} clips; its splits: {self.info.num_clips}")
        self.shard_sizes = np.array([shard.num_samples for shard in self.shards], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._decoded = Decoded(keep_decoded, len(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def check_files(self) -> None:
        """Raises: DataError when a file of a shard is missing or has another size than recorded."""
        check_files(self._storage, self.shards)

    def key(self, number: int) -> str:
        """The sample's id. Raises: DataError when the shard's index cannot be read."""
        index, _, row = self._find(number)
        return index.keys[row]

    def name(self, number: int) -> str:
        """The sample's id, or its place where that cannot be read."""
        try:
            return self.key(number)
        except DataError:
            return self.place_name(number)

    def place_name(self, number: int) -> str:
        """The sample's shard and row: `train-000007#12`."""
        shard, row = self._place(number)
        return f"{self.shards[shard].stem}#{row}"

    @property
    def is_cached(self) -> bool:
        return self._cache is not None

    def cached_bytes(self, shards: int) -> int:
        """What so many shards take in the cache at most."""
        sizes = sorted((shard.tar_bytes for shard in self.shards), reverse=True)
        return sum(sizes[:shards]) if self.is_cached else 0

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to bring shards to this machine, in this order; nothing to do without a cache."""
        if self._cache is not None:
            self._cache.prefetch(self._storage, [self.shards[shard] for shard in shards])

    def meta(self, number: int) -> ClipMeta:
        """What the sample's `.json` member says."""
        sample = self._fetch([number], only=META)[0]
        return ClipMeta.from_json(sample.member(META))

    def read(
        self, number: int, frames: int, fps: float, start: Start | None = None, *, holds: bool = False
    ) -> Clip:
        """`fetch` and `decode` of one sample. Raises: DataError."""
        found = self.fetch([number])[0]
        if isinstance(found, DataError):
            raise found
        return self.decode(found, frames, fps, start, holds=holds)

    def read_for(self, data: DataConfig, number: int) -> Clip:
        """`read` from the clip's beginning, as a run is configured to. Raises: DataError."""
        return self.read(number, data.frames, data.fps, holds=data.short_clips == "hold")

    def fetch(self, numbers: Sequence[int]) -> list[Sample | DataError]:
        """The bytes of samples; remotely several at once. What is wrong with one stands in its place.

        Raises: StorageError, RefusedError, when the trouble is the store's or the machine's, not a sample's.
        """
        try:
            return list(self._fetch(numbers))
        except DataError as error:
            _raise_if_not_of_a_sample(error)
        return [self._fetch_one(number) for number in numbers]

    def _fetch_one(self, number: int) -> Sample | DataError:
        try:
            return self._fetch([number])[0]
        except DataError as error:
            _raise_if_not_of_a_sample(error)
            return error

    def _fetch(self, numbers: Sequence[int], only: str | None = None) -> list[Sample]:
        wanted: list[tuple[int, int, Sample]] = []  # shard, size, sample without its bytes
        for number in numbers:
            index, shard, row = self._find(number)
            members = index.members(row)
            if only is not None:
                members = {suffix: member for suffix, member in members.items() if suffix == only}
            first = min((member.offset for member in members.values()), default=0)
            end = max((member.offset + member.size for member in members.values()), default=0)
            address = self._storage.address(tar_name(self.shards[shard].stem))
            wanted.append((shard, end - first, Sample(index.keys[row], address, members, first, b"")))
        if self._cache is None:
            pieces = self._read_spans(wanted)
        else:
            pieces = [self._read_cached(self._cache, *each) for each in wanted]
        return [replace(sample, data=data) for (*_, sample), data in zip(wanted, pieces, strict=True)]

    def _read_cached(self, cache: ShardCache, shard: int, size: int, sample: Sample) -> bytes:
        """From the cache; what has not the hash indexed makes a damaged file there come anew."""
        done, span = self.shards[shard], [(sample.first, size)]
        found = cache.read(self._storage, done, span)[0]
        if not replace(sample, data=found).is_whole() and cache.drop_damaged(done):
            found = cache.read(self._storage, done, span)[0]
        return found

    def _read_spans(self, wanted: Sequence[tuple[int, int, Sample]]) -> list[bytes]:
        """Remotely, what has not the hash indexed is asked for once more: it may have changed on its way."""
        spans = [(tar_name(self.shards[shard].stem), s.first, size) for shard, size, s in wanted]
        pieces = self._storage.read_spans(spans)
        if not self._storage.is_local:
            for place, (_, _, sample) in enumerate(wanted):
                if not replace(sample, data=pieces[place]).is_whole():
                    pieces[place] = self._storage.read(*spans[place])
        return pieces

    def decode(
        self, sample: Sample, frames: int, fps: float, start: Start | None = None, *, holds: bool = False
    ) -> Clip:
        """`frames` frames at `fps` a second, from the clip's beginning or from where `start` says.

        Each frame is the one shown at its time by the clip's own clock. A clip of one frame, a picture, shows
        it all the time.
        holds: a clip that is too short shows its last frame until the end.
        Raises: DataError when a member cannot be decoded, or the clip is shorter than asked for.
        """
        meta = ClipMeta.from_json(sample.member(META))
        if not (meta.fps > 0 and meta.num_frames > 0):
            raise DataError(
                f"sample {sample.key}: its .{META} tells {meta.num_frames} frames at {meta.fps} fps"
            )
        needed_s, length_s = frames / fps, meta.num_frames / meta.fps
        spare_s = length_s - needed_s
        if spare_s < -0.5 / meta.fps and not holds and meta.num_frames > 1:
            raise DataError(
                f"clip {sample.key} lasts {length_s:.2f} s; "
                f"{frames} frames at {fps:g} a second need {needed_s:.2f} s"
            )
        begin_s = start(max(0.0, spare_s)) if start is not None else 0.0
        # a quarter of a stored frame later: the container rounds times to its ticks
        wanted_s = begin_s + np.arange(frames) / fps + 0.25 / meta.fps
        is_jpeg = meta.encoding == "jpeg"

        def numbers(at_s: Seconds, frame_s: Seconds) -> NDArray[np.int64]:
            if not is_jpeg:
                return shown_at(frame_s, at_s)
            return np.minimum(np.floor(at_s * meta.fps).astype(np.int64), meta.num_frames - 1)

        def decoded(at_s: Seconds) -> At:
            if not is_jpeg:
                return decode_clip(sample.member(VIDEO), at_s, self._decoder)
            order, back = np.unique(found := numbers(at_s, at_s), return_inverse=True)
            images = decode_jpegs([sample.member(frame_suffix(k)) for k in order])
            return images if len(order) == len(at_s) else images[back], found / meta.fps, found

        size = meta.num_frames * meta.height * meta.width * 3
        every_s = (np.arange(meta.num_frames, dtype=np.float64) + 0.25) / meta.fps
        pictures, times_s, shown = self._decoded.frames(sample.key, size, every_s, wanted_s, decoded, numbers)

        def rows(suffix: str) -> NDArray[np.float32] | None:
            if suffix not in sample.members:
                return None
            try:
                table: NDArray[Any] = np.load(io.BytesIO(sample.member(suffix)), allow_pickle=False)
                if table.ndim != 2 or len(table) != meta.num_frames:
                    raise ValueError(f"shape {table.shape}, for {meta.num_frames} frames")
            except (ValueError, EOFError) as error:
                raise DataError(f"clip {sample.key}: its .{suffix} cannot be read: {error}") from error
            return table.astype(np.float32, copy=False)

        states, actions = rows(STATE), rows(ACTIONS)
        return Clip(
            sample.key,
            pictures,
            times_s,
            None if states is None else states[shown],
            None if actions is None else mean_until_next(actions, shown),
            meta,
        )

    def _read_index(self, done: ShardDone) -> bytes:
        try:
            return read_index(self._storage, done)
        except DataError:
            if self._storage.is_local:
                raise
        return read_index(self._storage, done)  # once more: it may have been changed on its way

    def _place(self, number: int) -> tuple[int, int]:
        """Shard, and row in it, of a sample."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.shard_sizes[shard])

    def _find(self, number: int) -> tuple[ShardIndex, int, int]:
        """The index of the sample's shard, the shard, the row in it. Raises: DataError."""
        shard, row = self._place(number)
        index = self._indexes.get(shard)
        if index is None:
            done: ShardDone = self.shards[shard]
            index = ShardIndex(self._read_index(done))
            if len(index) != done.num_samples:
                raise DataError(
                    f"shard {done.stem} has {len(index)} samples in its index, not {done.num_samples}"
                )
            if len(self._indexes) >= self._kept_indexes:
                self._indexes.popitem(last=False)
            self._indexes[shard] = index
        self._indexes.move_to_end(shard)
        return index, shard, row
