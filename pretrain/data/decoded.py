"""Clips that stay decoded, where a whole data set fits: small ones are gone through many times.

Shapes: T frames of a clip, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames
from data_pipeline.errors import DataError

At = tuple[Frames, NDArray[np.float64], NDArray[np.int64]]
"""Frames (T, H, W, 3), their own times in seconds and their numbers in the clip, both (T,)."""
Decode = Callable[[NDArray[np.float64]], At]
"""The frames shown at ascending seconds."""


class Decoded:
    """Keeps clips in memory, whole, if all of a data set are likely to fit: bit for bit what decoding gives.

    limit: bytes of this process. num_clips: of the data set; by its first clip it is told whether all fit.
    Where they would not, nothing is kept: of clips that are drawn evenly the few kept would hardly be met.
    When pickled, it goes without its clips.
    """

    def __init__(self, limit: int, num_clips: int) -> None:
        self._limit, self._num_clips = limit, num_clips
        self._clips: dict[str, tuple[Frames, NDArray[np.float64]]] = {}
        self.num_bytes = 0
        self.is_open = limit > 0

    def __reduce__(self) -> tuple[type[Decoded], tuple[int, int]]:
        return Decoded, (self._limit, self._num_clips)

    def frames(
        self, key: str, every_s: NDArray[np.float64], wanted_s: NDArray[np.float64], decode: Decode
    ) -> At:
        """Those shown at `wanted_s`. every_s: a moment of each frame of the clip. Raises: as decode does."""
        kept = self._clips.get(key)
        if kept is None and self.is_open:
            kept = self._whole(key, every_s, decode)
        if kept is None:
            return decode(wanted_s)
        pictures, times_s = kept
        shown = np.maximum(np.searchsorted(times_s, wanted_s, side="right") - 1, 0)
        return pictures[shown], times_s[shown], shown

    def _whole(
        self, key: str, every_s: NDArray[np.float64], decode: Decode
    ) -> tuple[Frames, NDArray[np.float64]] | None:
        """None of a clip of which something does not decode: what is wanted of it may, still."""
        try:
            pictures, times_s, shown = decode(every_s)
        except DataError:
            return None
        if not np.array_equal(shown, np.arange(len(every_s))):
            return None
        if not self._clips and pictures.nbytes * self._num_clips > self._limit:
            self.is_open = False
        elif self.num_bytes + pictures.nbytes > self._limit:
            self.is_open = False  # the first was smaller than most: what is kept stays
        else:
            self._clips[key] = pictures, times_s
            self.num_bytes += pictures.nbytes
        return pictures, times_s
