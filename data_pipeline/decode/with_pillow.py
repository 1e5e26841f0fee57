"""Clips of a JPEG a frame, read with Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from data_pipeline.decode.base import Frames
from data_pipeline.errors import DataError


def decode_jpegs(files: Sequence[bytes]) -> Frames:
    """The frames of JPEG files of one size: (T, H, W, 3) uint8 RGB. Raises: DataError."""
    from PIL import Image, UnidentifiedImageError

    frames = []
    for number, data in enumerate(files):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"its JPEG number {number} cannot be read: {error}") from error
    if len({frame.shape for frame in frames}) != 1:
        raise DataError(
            f"its JPEG frames have sizes {sorted({frame.shape for frame in frames})}; need one size"
        )
    return np.stack(frames)
