"""What a decoder is, and which one opens a video.

All give the same frames for the same timestamps, rotation applied. Times are seconds since the first frame.
`auto` is PyAV: it takes least time, reports damage that decord hides by repeating frames, and reads every
codec (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

Frames = NDArray[np.uint8]
Size = tuple[int, int]  # width, height, as displayed
DecoderName = Literal["auto", "decord", "pyav", "torchcodec"]


class Decoder(Protocol):
    """An open video: a context manager. Clips read in the order of their times cost least.

    timestamps_s: (F,) float64, ascending, seconds since the first frame; height, width: of the frames
    delivered, as displayed.
    """

    timestamps_s: NDArray[np.float64]
    height: int
    width: int

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        """Frames (n, H, W, 3) uint8 RGB, in the order of `indices`. Raises: DataError."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *raised: object) -> None: ...


def open_video(
    source: str | Path | bytes, decoder: DecoderName = "auto", size: Size | None = None
) -> Decoder:
    """Open a file (path) or a whole encoded clip (bytes).

    size: (width, height) of the frames wanted, as displayed, by area averaging; None: as they are. PyAV
    scales from the decoded YUV picture; the others scale their RGB.
    Raises: DataError when it is not a video that the decoder reads, with the reason.
    """
    from data_pipeline.decode.with_pyav import PyAvDecoder

    if size is not None and min(size) < 1:
        raise DataError(f"frames of {size[0]} × {size[1]} pixels: both must be 1 or more")
    if decoder == "torchcodec":
        from data_pipeline.decode.with_torchcodec import TorchCodecDecoder

        return TorchCodecDecoder(source, size)
    if decoder == "decord":
        from data_pipeline.decode.with_decord import DecordDecoder

        return DecordDecoder(source, size)
    return PyAvDecoder(source, size)
