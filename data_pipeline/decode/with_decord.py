"""decord: encoded clips from memory, without a temporary file, on one thread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames, Size
from data_pipeline.decode.container import last_words, open_container, read_packets, refuse_for_others
from data_pipeline.decode.scale import Scaler, resize_rgb
from data_pipeline.errors import DataError


class DecordDecoder:
    """A `Decoder`. Reads neither AV1 nor files without a duration nor frames narrower than 64 pixels.

    Files where it would give other frames than those asked for, without a word, are refused.
    """

    def __init__(self, source: str | Path | bytes, size: Size | None = None) -> None:
        try:
            import decord
        except ImportError as error:
            raise DataError(
                "decord is not installed here (it is for x86-64 Linux); use decoder pyav"
            ) from error

        refuse_for_others(source)
        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)
        try:
            self._reader: Any = decord.VideoReader(
                io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1
            )
            shown = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0].astype(np.float64)
            # the first frame as a batch: decord fails so, and only so, on frames narrower than 64 pixels
            height, width = self._reader.get_batch([0]).shape[1:3]
        except self._errors as error:
            raise DataError(f"decord cannot read it: {last_words(error)}") from error
        if not isinstance(source, bytes) or b"avc1" not in source:
            _check_reads_alike(source, len(shown))
        if not np.all(np.isfinite(shown)) or np.any(np.diff(shown) <= 0) or abs(shown[0]) > 1e9:
            raise DataError("decord finds no usable frame times in it")
        self.timestamps_s = shown - shown[0]
        self.width: int
        self.height: int
        self.width, self.height = size or (width, height)
        self._scaler = Scaler((self.width, self.height))

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        try:
            batch: Frames = self._reader.get_batch(np.asarray(indices, np.int64)).asnumpy()
        except (*self._errors, IndexError) as error:
            raise DataError(f"decord cannot decode the frames asked for: {last_words(error)}") from error
        return resize_rgb(batch, self._scaler)

    def close(self) -> None:
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _check_reads_alike(source: str | Path | bytes, num_frames: int) -> None:
    """Refuse what decord 0.6.0 reads wrongly.

    After seeks in HEVC, in MPEG-TS, and for frames that an edit list leaves out, it repeats neighbours.
    H.264 in memory is taken for a clip of our own making, which is none of these. Raises: DataError.
    """
    container, stream = open_container(source)
    with container:
        kind, codec = container.format.name, stream.codec_context.name
        if codec == "hevc" or kind in ("mpegts", "mpeg"):
            raise DataError(f"decord gives wrong frames of {codec} in {kind} after a seek: use decoder pyav")
        packets = read_packets(container, stream)
    if not packets.is_counted and len(packets.found) != num_frames:
        raise DataError(
            f"decord finds {num_frames} frames where {len(packets.found)} are shown: use decoder pyav"
        )
