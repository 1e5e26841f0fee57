"""Clips that stay decoded, where a whole data set fits: small ones are gone through many times.

Shapes: T frames of a clip, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames
from data_pipeline.errors import DataError

Seconds = NDArray[np.float64]
At = tuple[Frames, Seconds, NDArray[np.int64]]
"""Frames (T, H, W, 3), their own times in seconds and their numbers in the clip, both (T,)."""
Decode = Callable[[Seconds], At]
"""The frames shown at ascending seconds."""
Numbers = Callable[[Seconds, Seconds], NDArray[np.int64]]
"""Of the frames shown at some seconds, of a clip whose frames have these times."""


class Decoded:
    """Keeps clips in memory, whole, if all of a data set are likely to fit: bit for bit what decoding gives.

    limit: bytes of this process. num_clips: of the data set; by its first clip it is told whether all fit.
    Where they would not, nothing is kept: of clips that are drawn evenly the few kept would hardly be met.
    When pickled, it goes without its clips.
    """

    def __init__(self, limit: int, num_clips: int) -> None:
        self._limit, self._num_clips = limit, num_clips
        self._clips: dict[str, tuple[Frames, Seconds]] = {}
        self._not_whole: set[str] = set()
        self.num_bytes = 0
        self.is_open = limit > 0

    def __reduce__(self) -> tuple[type[Decoded], tuple[int, int]]:
        return Decoded, (self._limit, self._num_clips)

    def frames(
        self, key: str, size: int, every_s: Seconds, wanted_s: Seconds, decode: Decode, shown_at: Numbers
    ) -> At:
        """Those shown at `wanted_s`. size: bytes of the whole clip. every_s: a moment of each of its frames.

        shown_at: as `decode` chooses frames. Raises: as decode does.
        """
        kept = self._clips.get(key)
        if kept is None and self._has_room(key, size):
            kept = self._whole(key, every_s, decode)
        if kept is None:
            return decode(wanted_s)
        pictures, times_s = kept
        shown = shown_at(wanted_s, times_s)
        return pictures[shown], times_s[shown], shown

    def _has_room(self, key: str, size: int) -> bool:
        if not self.is_open or key in self._not_whole:
            return False
        promised = size * self._num_clips if not self._clips else self.num_bytes + size
        self.is_open = promised <= self._limit  # else for good; what is kept stays
        return self.is_open

    def _whole(self, key: str, every_s: Seconds, decode: Decode) -> tuple[Frames, Seconds] | None:
        """None of a clip of which something does not decode: what is wanted of it may, still."""
        try:
            pictures, times_s, shown = decode(every_s)
        except DataError:
            shown = None
        if shown is None or not np.array_equal(shown, np.arange(len(every_s))):
            self._not_whole.add(key)
            return None
        self._clips[key] = pictures, times_s
        self.num_bytes += pictures.nbytes
        return self._clips[key]
