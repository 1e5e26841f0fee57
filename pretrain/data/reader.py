"""Clips of a data set's shards, by number: a ranged read by the index, decoded at the clip's own times."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode import decode_jpegs, open_video
from data_pipeline.errors import DataError
from data_pipeline.format import (
    ACTIONS,
    META,
    STATE,
    VIDEO,
    ClipMeta,
    Sample,
    frame_suffix,
    read_info,
    read_shards,
    tar_name,
)
from data_pipeline.storage import Storage

Start = Callable[[float], float]
"""Spare seconds of a clip to the second at which the frames begin."""


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


class ClipReader:
    """The samples of one split, in the order of their shards.

    Raises: DataError when the data set is not finished, or has no shard of the split, or lacks one.
    """

    def __init__(self, root: str, split: str) -> None:
        self._storage = Storage(root)
        self.info = read_info(self._storage)
        shards = read_shards(self._storage, self.info.shards_of(split))
        if not shards:
            raise DataError(f"{root} has no {split} clips; its splits: {self.info.num_clips}")
        self.shard_sizes = [len(shard.samples) for shard in shards]
        self._samples = [sample for shard in shards for sample in shard.samples]
        self.keys = [sample.key for sample in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def meta(self, number: int) -> ClipMeta:
        """What the sample's `.json` member says."""
        return ClipMeta.from_json(self._member(self._samples[number], META))

    def read(self, number: int, frames: int, fps: float, start: Start | None = None) -> Clip:
        """`frames` frames at `fps` a second, from the clip's beginning or from where `start` says.

        Each frame is the one shown at its time by the clip's own clock.
        Raises: DataError when a member cannot be read or decoded, or the clip is shorter than asked for.
        """
        sample = self._samples[number]
        meta = self.meta(number)
        needed_s, length_s = frames / fps, meta.num_frames / meta.fps
        spare_s = length_s - needed_s
        if spare_s < -0.5 / meta.fps:
            raise DataError(
                f"clip {sample.key} lasts {length_s:.2f} s; "
                f"{frames} frames at {fps:g} a second need {needed_s:.2f} s"
            )
        begin_s = start(max(0.0, spare_s)) if start is not None else 0.0
        wanted_s = begin_s + np.arange(frames) / fps
        if meta.encoding == "jpeg":
            shown = np.minimum(np.floor(wanted_s * meta.fps + 0.25).astype(np.int64), meta.num_frames - 1)
            order, back = np.unique(shown, return_inverse=True)
            pictures = decode_jpegs([self._member(sample, frame_suffix(k)) for k in order])[back]
            times_s = shown / meta.fps
        else:
            with open_video(self._member(sample, VIDEO)) as video:
                shown = np.searchsorted(video.timestamps_s, wanted_s + 0.25 / meta.fps, side="right") - 1
                pictures = video.frames(shown)
                times_s = video.timestamps_s[shown]

        def rows(suffix: str) -> NDArray[np.float32] | None:
            if suffix not in sample.members:
                return None
            try:
                table = np.load(io.BytesIO(self._member(sample, suffix)), allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise DataError(f"clip {sample.key}: its .{suffix} cannot be read: {error}") from error
            found: NDArray[np.float32] = table[np.minimum(shown, len(table) - 1)]
            return found

        return Clip(sample.key, pictures, times_s, rows(STATE), rows(ACTIONS), meta)

    def _member(self, sample: Sample, suffix: str) -> bytes:
        if suffix not in sample.members:
            raise DataError(f"sample {sample.key} in shard {sample.stem} has no .{suffix} member")
        member = sample.members[suffix]
        return self._storage.read(tar_name(sample.stem), member.offset, member.size)
