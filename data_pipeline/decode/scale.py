"""Pictures to a size and a pixel format, through one swscale context that is kept from frame to frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.decode.base import Frames, Size


class Scaler:
    """Scales frames of any size and format to one; a context is built anew only when the input changes.

    By area where the picture shrinks, bicubic where it grows; at the same size RGB takes each chroma sample
    as it is, which is what every decoder here does with 8 bits, and so what all do alike. One thread: many workers of many threads
    stand in each other's way.
    """

    def __init__(self, size: Size, pixel_format: str = "rgb24") -> None:
        from av.video.reformatter import VideoReformatter

        self.size = size
        self._format = pixel_format
        self._reformatter = VideoReformatter()

    def scale(self, frame: Any) -> Any:
        """An av.VideoFrame in, one of the size and format out; the colour range and matrix are the frame's."""
        from av.video.reformatter import Interpolation

        width, height = self.size
        if (frame.width, frame.height) == (width, height):
            kind = Interpolation.POINT if self._format == "rgb24" else Interpolation.AREA
        elif width < frame.width or height < frame.height:
            kind = Interpolation.AREA
        else:
            kind = Interpolation.BICUBIC
        return self._reformatter.reformat(
            frame, width, height, self._format, interpolation=kind, threads=1
        )

    def image(self, frame: Any) -> Frames:
        """(H, W, 3) uint8, of a frame scaled to rgb24."""
        image: Frames = self.scale(frame).to_ndarray()
        return image


def resize_rgb(images: Frames, scaler: Scaler) -> Frames:
    """(n, H, W, 3) uint8 RGB to the scaler's size; for decoders that deliver nothing but RGB."""
    import av

    width, height = scaler.size
    if images.shape[1:3] == (height, width):
        return images
    out = np.empty((len(images), height, width, 3), np.uint8)
    for number, image in enumerate(images):
        out[number] = scaler.image(av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image)))
    return out
