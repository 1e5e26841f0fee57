"""The facts of a video file: what its headers say, and that its first frame decodes; those of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.decode.container import last_words, open_container
from data_pipeline.decode.with_pillow import PictureDecoder
from data_pipeline.errors import DataError

PICTURE = "picture"  # the container of a still picture
MAX_BAD_PACKETS = 64  # damaged packets passed over while looking for the first frame


@dataclass(frozen=True)
class VideoFacts:
    """What a file's headers say of its best video stream; sizes in pixels as displayed.

    num_frames is 0 and is_vfr None when the headers do not tell.
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    pixel_aspect: float
    average_fps: float
    nominal_fps: float
    is_vfr: bool | None
    duration_s: float
    num_frames: int
    has_audio: bool


def inspect(path: str | Path) -> VideoFacts:
    """What the headers say; the first frame alone is decoded, to know that the rest can be.

    Raises: DataError with the reason, in plain words, when this is no video that can be used;
    MemoryError, as when its pictures are larger than the memory allowed.
    """
    import av

    container, stream = open_container(path)
    with container:
        context = stream.codec_context
        frame, words = None, "no frame in it"
        bad_packets = 0
        try:
            for packet in container.demux(stream):
                try:
                    frame = next(iter(packet.decode()), None)
                except av.InvalidDataError as error:
                    bad_packets, words = bad_packets + 1, last_words(error)
                if frame is not None or bad_packets > MAX_BAD_PACKETS:
                    break
        except MemoryError:
            raise
        except av.FFmpegError as error:
            words = last_words(error)
        if frame is None:
            raise DataError(f"its {context.codec.canonical_name} stream does not decode: {words}")
        turned = frame.rotation % 180 != 0
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        duration_s = _duration_s(container, stream)
        if duration_s <= 0:
            raise DataError("its headers and packets tell no duration")
        return VideoFacts(
            container=container.format.name.split(",")[0],
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "",
            width=frame.height if turned else frame.width,
            height=frame.width if turned else frame.height,
            rotation=frame.rotation % 360,
            pixel_aspect=1 / aspect if turned else aspect,
            average_fps=float(stream.average_rate or 0),
            nominal_fps=float(stream.base_rate or 0),
            is_vfr=_is_vfr(stream),
            duration_s=duration_s,
            num_frames=stream.frames,
            has_audio=bool(container.streams.audio),
        )


def inspect_picture(path: str | Path, shown_s: float) -> VideoFacts:
    """Of a still picture, all of which is decoded: one frame that is shown for `shown_s` seconds.

    It has no frame rate (0), and its pixels count as square. Raises: as PictureDecoder does.
    """
    with PictureDecoder(path) as picture:
        return VideoFacts(
            container=PICTURE,
            codec=picture.codec,
            pixel_format=picture.pixel_format,
            width=picture.width,
            height=picture.height,
            rotation=picture.rotation,
            pixel_aspect=1.0,
            average_fps=0.0,
            nominal_fps=0.0,
            is_vfr=False,
            duration_s=shown_s,
            num_frames=1,
            has_audio=False,
        )


def _duration_s(container: Any, stream: Any) -> float:
    """Seconds by the stream's header, the container's, or the last packet, in that order."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        # Matroska's counts from zero, also where its first frame comes later.
        late = container.format.name.startswith("matroska") and stream.start_time
        return container.duration / 1e6 - (float(stream.start_time * stream.time_base) if late else 0.0)
    ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    return float(max(ends) * stream.time_base) if ends else 0.0


def _is_vfr(stream: Any) -> bool | None:
    """Whether frame spacing varies by more than rounding, by the container's index; None without one."""
    times = np.array([entry.timestamp for entry in stream.index_entries], np.int64)
    # Without a count of frames an index may name keyframes alone.
    if len(times) < 3 or not stream.frames or len(times) < stream.frames:
        return None
    gaps = np.diff(np.sort(times))
    return bool(gaps.max() - gaps.min() > max(2, 0.1 * np.median(gaps)))
