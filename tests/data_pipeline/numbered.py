"""Videos whose frames carry their number: eight stripes, bright or dark, readable after any codec."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 1000)
BITS = 8
DARK, BRIGHT = 40, 215


def draw_number(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: bit 0 of `number` is the leftmost stripe."""
    bits = (number >> (np.arange(width) * BITS // width)) & 1
    row = np.where(bits, BRIGHT, DARK).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(image: np.ndarray) -> int:
    """The number that a picture shows. Asserts that its stripes are clear."""
    width = image.shape[1]
    edges = np.ceil(np.arange(BITS + 1) * width / BITS).astype(int)
    means = [image[:, a : max(b, a + 1)].mean() for a, b in pairwise(edges)]
    assert all(abs(mean - 128) > 40 for mean in means), f"no clear number: {np.round(means)}"
    return sum((mean > 128) << bit for bit, mean in enumerate(means))


@contextmanager
def same_scheduling() -> Iterator[None]:
    """SVT-AV1 makes root's process real-time (SCHED_FIFO 99), and all that it starts later inherits that.

    Two gloo loops, which spin while they wait for somebody, then leave no core to those they wait for.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    *,
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    pixel_format: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    mux: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames (as they are to be displayed) 100 ms apart, or at `times_ms`."""
    with same_scheduling(), av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stored = [np.ascontiguousarray(np.rot90(frame, -(rotation // 90))) for frame in frames]
        stream.height, stream.width = stored[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        if path.suffix != ".avi":
            stream.codec_context.time_base = stream.time_base = CLOCK
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        stream.options = options
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if path.suffix == ".avi":
                frame.time_base, frame.pts = Fraction(1, 10), number
            else:
                frame.time_base = CLOCK
                frame.pts = times_ms[number] if times_ms else number * 100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered_frames(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    return [draw_number(number, width, height) for number in range(count)]


class Forgetful(dict):  # type: ignore[type-arg]
    """In place of the frames that a decoder keeps, so that each is decoded when it is asked for."""

    def __setitem__(self, key: object, value: object) -> None:
        super().clear()
        super().__setitem__(key, value)
