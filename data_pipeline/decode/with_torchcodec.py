"""torchcodec: only when asked for by name, and imported only then, since it brings torch along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames, Size
from data_pipeline.decode.container import last_words, open_container, read_packets, refuse_for_others
from data_pipeline.decode.scale import Scaler, resize_rgb
from data_pipeline.errors import DataError

SAME_TIME_S = 1e-3  # the coarsest clock of the common containers
FULL_RANGE = 2  # AVCOL_RANGE_JPEG


class TorchCodecDecoder:
    """A `Decoder`. The times are the packets' own, and each frame that comes out is held against its time."""

    def __init__(self, source: str | Path | bytes, size: Size | None = None) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:  # its libraries fail in each of these ways
            raise DataError(
                f"torchcodec is not installed here or does not load ({last_words(error)}): install "
                "torchcodec 0.13 beside torch, and FFmpeg's shared libraries (4 to 8), or use decoder pyav"
            ) from error

        refuse_for_others(source)
        container, stream = open_container(source)
        with container:
            packets = read_packets(container, stream)
            tick_s = float(stream.time_base or 0)
            context = stream.codec_context
            is_deep = any(plane.bits > 8 for plane in context.format.components)
            if is_deep and context.color_range == FULL_RANGE:
                raise DataError(
                    "torchcodec takes full-range frames of more than 8 bits for limited; use pyav"
                )
        if packets.is_counted or not tick_s:
            raise DataError("its packets do not tell when frames are shown, which torchcodec needs; use pyav")
        try:
            self._decoder: Any = VideoDecoder(
                source if isinstance(source, bytes) else str(source),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
            )
            first = self._decoder.get_frames_at([0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"torchcodec cannot read it: {last_words(error)}") from error
        ticks = np.array(sorted(packets.found), np.int64)
        if len(ticks) != len(self._decoder):
            raise DataError(
                f"torchcodec finds {len(self._decoder)} frames in its {len(ticks)} packets; use pyav"
            )
        self.timestamps_s = (ticks - ticks[0]) * tick_s
        self._first_s = float(first.pts_seconds[0])
        height, width = first.data.shape[1:3]
        self.width, self.height = size or (width, height)
        self._scaler = Scaler((self.width, self.height))

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        wanted = np.asarray(indices, np.int64)
        if len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= len(self.timestamps_s):
            raise DataError(f"frame indices must lie in 0..{len(self.timestamps_s) - 1}")
        try:
            batch = self._decoder.get_frames_at(wanted.tolist())
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"torchcodec cannot decode the frames asked for: {last_words(error)}") from error
        shown = batch.pts_seconds.numpy() - self._first_s
        if np.abs(shown - self.timestamps_s[wanted]).max() > SAME_TIME_S:
            raise DataError("torchcodec gave frames of other times than those asked for; use pyav")
        return resize_rgb(batch.data.numpy(), self._scaler)

    def close(self) -> None:
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
