"""Pictures to a size and a pixel format, through one swscale context that is kept from frame to frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.decode.base import Frames, Size


class Scaler:
    """Scales frames of any size and format to one size, and to RGB or `pixel_format`.

    By area where the picture shrinks, bicubic where it grows. Scaled RGB is within 1 of 255 of the formulas:
    swscale rounds down by up to 4 when it scales to packed rgb24, so it scales to planes, in less time. At
    the same size each chroma sample is taken as it is, as every decoder here does, so that all are alike.
    One thread: many workers of many threads stand in each other's way.
    """

    def __init__(self, size: Size) -> None:
        from av.video.reformatter import VideoReformatter

        self.size = size
        self._reformatter = VideoReformatter()  # its context is built anew only when its input changes
        self._packer = VideoReformatter()

    def scale(self, frame: Any, pixel_format: str) -> Any:
        """An av.VideoFrame of the size and `pixel_format`; matrix and range of YUV stay as they are."""
        from av.video.reformatter import Interpolation

        width, height = self.size
        kind = Interpolation.AREA
        if self._is_same(frame) and pixel_format == "rgb24":
            kind = Interpolation.POINT
        elif width > frame.width and height > frame.height:
            kind = Interpolation.BICUBIC
        return self._reformatter.reformat(frame, width, height, pixel_format, interpolation=kind, threads=1)

    def image(self, frame: Any) -> Frames:
        """(H, W, 3) uint8 RGB of an av.VideoFrame."""
        from av.video.reformatter import Interpolation

        if self._is_same(frame):
            packed = self.scale(frame, "rgb24")
        else:  # swscale packs the planes, which changes no value, in half the time that PyAV takes
            planes = self.scale(frame, "gbrp")
            packed = self._packer.reformat(
                planes, format="rgb24", interpolation=Interpolation.POINT, threads=1
            )
        image: Frames = packed.to_ndarray()
        return image

    def _is_same(self, frame: Any) -> bool:
        return (frame.width, frame.height) == self.size


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
