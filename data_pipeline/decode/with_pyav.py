"""PyAV: every codec and container, strictly, on one thread. The decoder for files of unknown origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.base import Frames, Size
from data_pipeline.decode.container import last_words, open_container, read_packets
from data_pipeline.decode.scale import Scaler
from data_pipeline.errors import DataError

SEEK_GAIN = 8  # seek forward only when it skips more frames than this
RECENT_BYTES = 32 << 20  # frames kept for a next clip that overlaps this one: 95 of 456 × 256 pixels


class PyAvDecoder:
    """A `Decoder` for which a damaged frame is an error, never a guess.

    Frames are known by their times in ticks of the stream; where those are missing or, as in AVI, belong to
    another frame after reordering, by their number. num_decoded counts the frames that libav put out.
    """

    def __init__(self, source: str | Path | bytes, size: Size | None = None) -> None:
        self._source = source
        self._is_counted = False
        self.num_decoded = 0
        # By tick, the oldest first. Kept from the first step back on: fresh memory for each frame of a video
        # whose clips do not overlap cost a third of its decoding.
        self._recent: dict[tuple[Size, int], Frames] = {}
        self._keeps_recent = False
        self._pictures: dict[int, Any] = {}  # as decoded, by tick, of the last call that was to keep them
        self._open()
        try:
            self._scan()
            first = self._frame(int(self._ticks[0]), frozenset())
        except BaseException:  # whatever it was, the file is not left open; the error goes on
            self.close()
            raise
        self.rotation = first.rotation
        is_turned = self.rotation % 180 != 0
        own = (first.height, first.width) if is_turned else (first.width, first.height)
        self.width: int
        self.height: int
        self.width, self.height = size or own
        self._is_turned = is_turned
        self._scalers: dict[Size, Scaler] = {}

    def _open(self) -> None:
        self._container, self._stream = open_container(self._source)
        # An H.264 picture of nal_ref_idc 0 is leant on by no other: those not asked for need no decoding.
        self._may_skip = self._stream.codec_context.name == "h264"
        self._begin()

    def _begin(self, key_tick: int | None = None) -> None:
        """Decode from where the container stands; key_tick: of the keyframe that it was sent to."""
        self._key_tick = key_tick
        self._skip_until, self._wanted = -(1 << 62), frozenset[int]()
        self._decoding = self._decode()
        self._here: int | None = None  # the last frame decoded, and its tick
        self._current: Any = None

    def _restart(self) -> None:
        self._container.close()
        self._open()

    def _scan(self) -> None:
        """Ticks of all frames, and keyframes, from the packets; by decoding where packets do not tell."""
        packets = read_packets(self._container, self._stream)
        found = packets.found
        self._is_counted = packets.is_counted
        self._restart()
        if self._is_counted:
            found = self._count()
        if not found:
            raise DataError("it holds a video stream without a single frame")
        self._ticks = np.array(sorted(found), np.int64)
        shown = sorted(set(packets.decode_ticks))  # in AVI, the times at which frames are shown one by one
        times = shown[: len(found)] if self._is_counted else self._ticks
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
        try:
            for _ in self._decode():
                count += 1
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
        self._restart()
        return {number: (False, number) for number in range(count)}

    def _decode(self) -> Iterator[tuple[int, Any]]:
        import av

        count = 0
        context = self._stream.codec_context
        is_skipping = False
        for packet in self._container.demux(self._stream):
            # What lies behind the last frame asked for may be asked for next, so it is never skipped.
            pts = packet.pts
            skips = pts is not None and pts < self._skip_until and pts not in self._wanted
            if skips != is_skipping:
                context.skip_frame = "NONREF" if skips else "DEFAULT"
                is_skipping = skips
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                # Pictures shown before the keyframe lean on the group before it (open GOP), if they are sent.
                if self._key_tick is not None and pts is not None and pts < self._key_tick:
                    continue
                raise
            for frame in frames:
                self.num_decoded += 1
                if self._is_counted:
                    yield count, frame
                elif frame.pts is not None:
                    yield frame.pts, frame
                count += 1

    def _approach(self, tick: int) -> None:
        """Seek, or start again, when that is nearer to `tick` than going on."""
        if self._here is None:
            passed = 0
        elif self._here <= tick:
            passed = int(np.searchsorted(self._ticks, self._here))
        else:  # backwards
            passed = -SEEK_GAIN - 1
        key = self._key_before(tick)
        if key > 0 and np.searchsorted(self._ticks, self._key_ticks[key]) - passed > SEEK_GAIN:
            self._jump(key)
        elif passed < 0:
            self._restart()

    def _key_before(self, tick: int) -> int:
        """The number of the last keyframe at or before `tick`; -1 when there is none."""
        return int(np.searchsorted(self._key_ticks, tick, side="right")) - 1

    def _jump(self, key: int) -> None:
        """To the keyframe of this number, or to the start."""
        if key <= 0:
            self._restart()
            return
        self._container.seek(self._key_seek[key], stream=self._stream, backward=True)
        self._begin(int(self._key_ticks[key]))

    def _frame(self, tick: int, wanted: frozenset[int]) -> Any:
        """The decoded frame of `tick`, on the way to those of `wanted`.

        Raises: DataError when it is damaged or missing.
        """
        import av

        words = "promised but does not decode"
        for is_again in (False, True):
            # A seek can go too far, or into pictures that lean on earlier ones: then from further back.
            try:
                if is_again:
                    self._jump(self._key_before(tick) - 2)
                else:
                    self._approach(tick)
                    if self._may_skip and wanted and not self._is_counted:
                        self._skip_until, self._wanted = max(wanted), wanted
                if self._advance(tick):
                    return self._current
            except MemoryError:
                raise
            except av.FFmpegError as error:
                words = f"damaged: {last_words(error)}"
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

    def frames(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        size: Size | None = None,
        keeps: bool = False,
    ) -> Frames:
        """As a `Decoder` does; size: another (width, height) than that of the others.

        keeps: hold the pictures as they were decoded, megabytes each, until the next call, which may want
        the same ones at another size.
        """
        size = size or (self.width, self.height)
        order, back = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if len(order) == 0 or order[0] < 0 or order[-1] >= len(self._ticks):
            raise DataError(f"frame indices must lie in 0..{len(self._ticks) - 1}")
        ticks = self._ticks[order].tolist()
        self._pictures = {tick: self._pictures[tick] for tick in ticks if tick in self._pictures}
        unknown = [t for t in ticks if t not in self._pictures and (size, t) not in self._recent]
        self._keeps_recent |= (
            self._here is not None and ticks[0] < self._here and ticks[0] not in self._pictures
        )
        wanted = frozenset(unknown)
        images = np.empty((len(order), size[1], size[0], 3), np.uint8)
        for number, tick in enumerate(ticks):
            images[number] = self._image(tick, wanted, size, keeps)
        if not keeps:
            self._pictures = {}
        in_order = len(back) == len(order) and np.array_equal(back, np.arange(len(back)))
        return images if in_order else images[back]

    def _image(self, tick: int, wanted: frozenset[int], size: Size, keeps: bool) -> Frames:
        """(H, W, 3) of `tick`, scaled and turned."""
        image = self._recent.get((size, tick))
        if image is None:
            picture = self._pictures.get(tick)
            if picture is None:
                picture = self._frame(tick, wanted)
                if keeps:
                    self._pictures[tick] = picture
            image = np.rot90(self._scaler(size).image(picture), self.rotation // 90 % 4)
            if self._keeps_recent:
                self._recent[size, tick] = image
                if len(self._recent) * image.nbytes > RECENT_BYTES:
                    self._recent.pop(next(iter(self._recent)))
        return image

    def _scaler(self, size: Size) -> Scaler:
        """Pictures are scaled first, then turned. A stream that changes its size is brought to one size."""
        if size not in self._scalers:
            self._scalers[size] = Scaler(size[::-1] if self._is_turned else size)
        return self._scalers[size]

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
