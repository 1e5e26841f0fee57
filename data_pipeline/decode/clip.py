"""Encoded clips from memory, in one pass: what training reads millions of times.

`open_video` serves files of any origin: it opens twice and looks at every packet before it decodes. A clip
of our own making is small and whole, so its packets are kept while their times are looked at.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import DecoderName, Frames, open_video
from data_pipeline.decode.container import last_words, open_container
from data_pipeline.decode.scale import Scaler
from data_pipeline.errors import DataError


class _Scalers(threading.local):
    """A thread's own scalers: swscale lets go of Python's lock, and two frames in one context crash it."""

    def __init__(self) -> None:
        self.of = functools.lru_cache(maxsize=8)(Scaler)  # clips of a data set have few sizes


_scalers = _Scalers()


def decode_clip(
    data: bytes, wanted_s: NDArray[np.float64], decoder: DecoderName = "auto"
) -> tuple[Frames, NDArray[np.float64], NDArray[np.int64]]:
    """The frames shown at `wanted_s`, ascending seconds since the first frame.

    decoder: auto and pyav read in one pass; the others as `open_video` does.
    Returns: (T, H, W, 3) uint8 RGB; their own times (T,) in seconds; their numbers (T,) in the clip. After
    the last frame, it is the last. Raises: DataError when a frame is damaged or missing.
    """
    if decoder in ("auto", "pyav"):
        found = _in_one_pass(data, wanted_s)
        if found is not None:
            return found
    with open_video(data, decoder) as video:
        shown = shown_at(video.timestamps_s, wanted_s)
        return video.frames(shown), video.timestamps_s[shown], shown


def shown_at(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the frames that are shown at some seconds, of a clip with these times."""
    return np.maximum(np.searchsorted(times_s, wanted_s, side="right") - 1, 0)


def _in_one_pass(
    data: bytes, wanted_s: NDArray[np.float64]
) -> tuple[Frames, NDArray[np.float64], NDArray[np.int64]] | None:
    """None when the clip is none of ours: its packets have no times, or its pictures are to be turned."""
    import av

    container, stream = open_container(data)
    with container:
        try:
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            if not packets or any(packet.pts is None for packet in packets):
                return None
            ticks = np.unique([packet.pts for packet in packets])
            times_s = (ticks - ticks[0]) * float(stream.time_base)
            shown = shown_at(times_s, wanted_s)
            order, back = np.unique(shown, return_inverse=True)
            pictures = _decode(stream.codec_context, packets, ticks[order].tolist())
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise DataError(f"the clip is damaged: {last_words(error)}") from error
        for place, picture in zip(order, pictures, strict=True):
            if picture is None:
                raise DataError(f"the clip's frame at {times_s[place]:.2f} s is promised but does not decode")
        first = pictures[0]
        if first.rotation:
            return None
        scaler = _scalers.of((first.width, first.height))
        images = np.empty((len(order), first.height, first.width, 3), np.uint8)
        for row, picture in enumerate(pictures):
            images[row] = scaler.image(picture)
        return images if len(order) == len(shown) else images[back], times_s[shown], shown


def _decode(context: Any, packets: list[Any], ticks: list[int]) -> list[Any]:
    """The pictures of ascending ticks, None for one that does not come, decoded from the keyframe before."""
    found: dict[int, Any] = dict.fromkeys(ticks)
    begin = max((k for k, p in enumerate(packets) if p.is_keyframe and p.pts <= ticks[0]), default=0)
    for packet in (*packets[begin:], None):
        for frame in context.decode(packet):
            if frame.pts in found:
                found[frame.pts] = frame
        if found[ticks[-1]] is not None:
            break
    return list(found.values())
