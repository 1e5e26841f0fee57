"""Frames and facts out of video files and bytes: a Decoder protocol, decord and PyAV behind it.

Both give the same frames for the same timestamps, rotation applied. Times are seconds since the first
frame. `auto` reads encoded clips (bytes) with decord, and with PyAV where decord is not installed or
cannot; files of unknown origin are read with PyAV, which takes two thirds of decord's time on them,
reports damage that decord hides by repeating frames, and reads every codec.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

Frames = NDArray[np.uint8]
DecoderName = Literal["auto", "decord", "pyav"]

SEEK_GAIN = 8  # seek forward only when it skips more frames than this
MAX_BAD_PACKETS = 64  # damaged packets passed over while looking for the first frame


class Decoder(Protocol):
    """An open video: a context manager.

    timestamps_s: (F,) float64, ascending, seconds since the first frame; height, width: as displayed.
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


def open_video(source: str | Path | bytes, decoder: DecoderName = "auto") -> Decoder:
    """Open a file (path) or a whole encoded clip (bytes).

    Raises: DataError when it is not a video that the decoder reads, with the reason.
    """
    if decoder == "pyav" or (decoder == "auto" and not isinstance(source, bytes)):
        return PyAvDecoder(source)
    try:
        return DecordDecoder(source)
    except ImportError as error:
        if decoder == "decord":
            raise DataError(
                "decord is not installed here (it is for x86-64 Linux); use decoder pyav"
            ) from error
    except DataError:
        if decoder == "decord":
            raise
    return PyAvDecoder(source)


class DecordDecoder:
    """decord, one thread; reads clips from memory without a temporary file."""

    def __init__(self, source: str | Path | bytes) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)
        try:
            self._reader: Any = decord.VideoReader(
                io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1
            )
            shown = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0].astype(np.float64)
            # the first frame as a batch: decord fails so, and only so, on frames narrower than 64 pixels
            self.height, self.width = self._reader.get_batch([0]).shape[1:3]
        except self._errors as error:
            raise DataError(f"decord cannot read it: {_last_words(error)}") from error
        if not np.all(np.isfinite(shown)) or np.any(np.diff(shown) <= 0) or abs(shown[0]) > 1e9:
            raise DataError("decord finds no usable frame times in it")
        self.timestamps_s = shown - shown[0]

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        try:
            batch: Frames = self._reader.get_batch(np.asarray(indices, np.int64)).asnumpy()
        except (*self._errors, IndexError) as error:
            raise DataError(f"decord cannot decode the frames asked for: {_last_words(error)}") from error
        return batch

    def close(self) -> None:
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class PyAvDecoder:
    """PyAV, one thread, strict: a damaged frame is an error, never a guess.

    Frames are known by their times in ticks of the stream; where those are missing or, as in AVI, belong to
    another frame after reordering, by their number.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        self._source = source
        self._is_counted = False
        self._open()
        self._scan()
        first = self._frame(int(self._ticks[0]))
        self.rotation = first.rotation
        turned = self.rotation % 180 != 0
        self.height, self.width = (first.width, first.height) if turned else (first.height, first.width)

    def _open(self) -> None:
        self._container, self._stream = _open_container(self._source)
        self._decoding = self._decode()
        self._here: int | None = None  # the last frame decoded, and its tick
        self._current: Any = None

    def _scan(self) -> None:
        """Ticks of all frames, and keyframes, from the packets; by decoding where packets do not tell."""
        import av

        found: dict[int, tuple[bool, int]] = {}
        shown: list[int] = []  # decoding times: in AVI, the times at which frames are shown one by one
        is_counted = self._container.format.name == "avi"
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.dts is not None:
                    shown.append(packet.dts)
                if packet.pts is None:
                    is_counted = True
                else:
                    found[packet.pts] = (packet.is_keyframe, min(packet.pts, packet.dts or packet.pts))
        except av.FFmpegError as error:
            if not found and not shown:
                raise DataError(f"its packets cannot be read: {_last_words(error)}") from error
        self._is_counted = is_counted
        self._restart()
        if is_counted:
            found = self._count()
        if not found:
            raise DataError("it holds a video stream without a single frame")
        self._ticks = np.array(sorted(found), np.int64)
        times = sorted(set(shown))[: len(found)] if is_counted else self._ticks
        tick_s = self._stream.time_base or Fraction(1, 1000)
        if len(times) < len(found):  # no clock at all: the rate is the clock
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise DataError("it tells neither the times of its frames nor their rate")
            times, tick_s = self._ticks, 1 / Fraction(rate)
        self.timestamps_s = (np.asarray(times, np.int64) - times[0]) * float(tick_s)
        keys = [(tick, found[tick][1]) for tick in sorted(found) if found[tick][0]]
        self._key_ticks = np.array([tick for tick, _ in keys], np.int64)
        self._key_seek = [seek for _, seek in keys]

    def _count(self) -> dict[int, tuple[bool, int]]:
        """Frames by number, none of them a keyframe to seek to; those behind damage do not count."""
        import av

        count = 0
        with contextlib.suppress(av.FFmpegError):
            for _ in self._decode():
                count += 1
        self._restart()
        return {number: (False, number) for number in range(count)}

    def _restart(self) -> None:
        self._container.close()
        self._open()

    def _decode(self) -> Iterator[tuple[int, Any]]:
        count = 0
        for packet in self._container.demux(self._stream):
            for frame in packet.decode():
                if self._is_counted:
                    yield count, frame
                elif frame.pts is not None:
                    yield frame.pts, frame
                count += 1

    def _approach(self, tick: int) -> None:
        """Seek, or start again, when that is nearer to `tick` than going on."""
        key = int(np.searchsorted(self._key_ticks, tick, side="right")) - 1
        if self._here is not None and self._here <= tick:
            passed = int(np.searchsorted(self._ticks, self._here))
        elif self._here is None:
            passed = 0
        else:  # backwards
            passed = -SEEK_GAIN - 1
        if key > 0 and np.searchsorted(self._ticks, self._key_ticks[key]) - passed > SEEK_GAIN:
            self._container.seek(self._key_seek[key], stream=self._stream, backward=True)
            self._decoding, self._here, self._current = self._decode(), None, None
        elif passed < 0:
            self._restart()

    def _frame(self, tick: int) -> Any:
        """The decoded frame of `tick`. Raises: DataError when it is damaged or missing."""
        import av

        words = "promised but does not decode"
        self._approach(tick)
        for _ in range(
            2
        ):  # a seek can go too far, or into pictures that lean on earlier ones: then from the start
            try:
                if self._advance(tick):
                    return self._current
            except av.FFmpegError as error:
                words = f"damaged: {_last_words(error)}"
            self._restart()
        seconds = self.timestamps_s[int(np.searchsorted(self._ticks, tick))]
        raise DataError(f"the frame at {seconds:.2f} s is {words}")

    def _advance(self, tick: int) -> bool:
        while self._here is None or self._here < tick:
            step = next(self._decoding, None)
            if step is None:
                return False
            self._here, self._current = step
        return self._here == tick

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        order, back = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if len(order) == 0 or order[0] < 0 or order[-1] >= len(self._ticks):
            raise DataError(f"frame indices must lie in 0..{len(self._ticks) - 1}")
        images = [_to_rgb(self._frame(int(self._ticks[index]))) for index in order]
        stacked = np.stack([np.rot90(image, self.rotation // 90 % 4) for image in images])
        return np.ascontiguousarray(stacked[back])

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def inspect(path: str | Path) -> VideoFacts:
    """What the headers say; the first frame alone is decoded, to know that the rest can be.

    Raises: DataError with the reason, in plain words, when this is no video that can be used.
    """
    import av

    container, stream = _open_container(path)
    with container:
        context = stream.codec_context
        frame, words = None, "no frame in it"
        bad_packets = 0
        try:
            for packet in container.demux(stream):
                try:
                    frame = next(iter(packet.decode()), None)
                except av.InvalidDataError as error:
                    bad_packets, words = bad_packets + 1, _last_words(error)
                if frame is not None or bad_packets > MAX_BAD_PACKETS:
                    break
        except av.FFmpegError as error:
            words = _last_words(error)
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


def _to_rgb(frame: Any) -> Frames:
    """(H, W, 3) RGB, unrotated; on one thread, or many workers of many threads stand in each other's way."""
    image: Frames = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return image


def _open_container(source: str | Path | bytes) -> tuple[Any, Any]:
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), metadata_errors="replace"
        )
    except av.FFmpegError as error:
        raise DataError(_why_not_a_video(source, error)) from error
    stream: Any = container.streams.best("video")
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise DataError(f"it holds no video, only {' and '.join(kinds) or 'an empty container'}")
    if stream.codec_context is None:
        container.close()
        raise DataError("its video stream is in a codec that this FFmpeg does not know")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    return container, stream


def _why_not_a_video(source: str | Path | bytes, error: Exception) -> str:
    """A true reason, from the first bytes, where libav only says `invalid data`."""
    try:
        if isinstance(source, bytes):
            head = source[:512]
        else:
            with open(source, "rb") as file:
                head = file.read(512)
    except OSError as problem:
        return f"it cannot be opened: {problem.strerror or problem}"
    if not head:
        return "the file is empty (0 bytes)"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, not a video"
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing or broken: the file was cut short or never finished"
    return f"no video container is recognised in it: {_last_words(error)}"


def _duration_s(container: Any, stream: Any) -> float:
    """Seconds by the stream's header, the container's, or the last packet, in that order."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration / 1_000_000)
    ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    return float(max(ends) * stream.time_base) if ends else 0.0


def _is_vfr(stream: Any) -> bool | None:
    """Whether frame spacing varies by more than rounding, by the container's index; None without one."""
    times = np.array([entry.timestamp for entry in stream.index_entries], np.int64)
    if len(times) < 3 or len(times) < stream.frames:
        return None
    gaps = np.diff(np.sort(times))
    return bool(gaps.max() - gaps.min() > max(2, 0.1 * np.median(gaps)))


def _last_words(error: BaseException) -> str:
    """One line of what a decoder says, without its source files and stack."""
    lines = [
        line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()
    ]
    text = lines[0] if lines else type(error).__name__
    return text.rsplit(": ", 1)[-1][:160] if "/src/" in text else text[:160]
