"""A video's clips, or a picture's, as members of a tar, with their scores and verdicts. Runs in the child."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import EncodeConfig, FilterConfig
from data_pipeline.decode import Frames, PictureDecoder, decode_jpegs, open_video
from data_pipeline.decode.with_pyav import PyAvDecoder
from data_pipeline.encode import check_encoded, encode_frames, encode_jpegs, encoded_size, frame_indices
from data_pipeline.errors import DataError
from data_pipeline.filters import reason_to_leave_out
from data_pipeline.format import ACTIONS, META, STATE, VIDEO, ClipMeta, frame_suffix, to_json
from data_pipeline.manifest import Clip, Video
from data_pipeline.scores import BAR_LEVEL, BAR_SHARE, find_bars, score_frames
from data_pipeline.sidecar import Sidecar, read_sidecar, resample_sidecar
from data_pipeline.sources import SidecarFile, Span

CHUNK_FRAMES = 16  # frames asked of a decoder at once, fewer of large pictures:
CHUNK_BYTES = 64 << 20
SMEARED = 5  # rows of a bar beside the picture that scaling and the codec may have brightened, at most
PREVIEW_SIDE = 72  # short side of what the data card shows of a clip that was left out
Opened = PyAvDecoder | PictureDecoder
PREVIEW = "preview.jpg"  # such a clip's only member; it never reaches a shard


@dataclass(frozen=True)
class EncodeTask:
    """What the child is told of a video: its paths, and how its clips are to be made."""

    path: str
    video: Video
    spans: tuple[Span, ...]
    sidecars: dict[str, str]
    encode: EncodeConfig
    filters: FilterConfig


def encode_clips(task: EncodeTask, clips: tuple[Clip, ...]) -> Iterator[tuple[Clip, dict[str, bytes]] | None]:
    """In the child: each clip with its scores and verdict, in order, and its members when it is kept.

    None after each chunk of frames. A damaged clip does not stop the next.
    Raises: DataError when the video as a whole does not open.
    """
    sidecars: dict[SidecarFile, Sidecar] = {}
    with PictureDecoder(task.path) if task.video.is_picture else open_video(task.path, "pyav") as video:
        assert isinstance(video, Opened)
        for clip in clips:
            try:
                yield from _encode_clip(video, sidecars, task, clip)
            except DataError as error:
                yield failed(clip, error), {}


def failed(clip: Clip, error: DataError, attempts: int = 1) -> Clip:
    return dataclasses.replace(
        clip, status="failed", reason=str(error), error_class=type(error).__name__, attempts=attempts
    )


@dataclass(frozen=True)
class _Crop:
    """A clip without its bars: the size at which the whole picture is scaled, the corner to cut from."""

    clip: Clip
    whole: tuple[int, int]
    corner: tuple[int, int]

    def cut(self, whole_THWC: Frames) -> Frames:
        left, top = self.corner
        return whole_THWC[:, top : top + self.clip.height, left : left + self.clip.width]

    def leaves_black(self, whole_THWC: Frames) -> bool:
        """Whether what is cut off is black, but for what scaling smeared beside the picture."""
        left, top = self.corner
        right, bottom = self.whole[0] - left - self.clip.width, self.whole[1] - top - self.clip.height
        above, below, before, behind = (side - min(SMEARED, side // 2) for side in (top, bottom, left, right))
        rows = (whole_THWC[:, :above], whole_THWC[:, self.whole[1] - below :])
        columns = (whole_THWC[:, :, :before], whole_THWC[:, :, self.whole[0] - behind :])
        return all(_is_black(part, 1) for part in rows) and all(_is_black(part, 0) for part in columns)


def _is_black(part_THWC: Frames, axis: int) -> bool:
    """Whether nearly all pixels of each row (axis 1) or column (axis 0) are black throughout, as in a bar."""
    if part_THWC.size == 0:
        return True
    brightest_HW = part_THWC.max(axis=0).max(axis=2)
    return bool(((brightest_HW <= BAR_LEVEL).mean(axis=axis) >= BAR_SHARE).all())


def _chunks(video: Video, num_frames: int) -> Iterator[slice]:
    """As many frames at once as may be kept as they are decoded, at two bytes a pixel."""
    length = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // (2 * video.width * video.height)))
    for start in range(0, num_frames, length):
        yield slice(start, min(start + length, num_frames))


def _decode(
    video: Opened, task: EncodeTask, clip: Clip, indices: NDArray[np.int64]
) -> Iterator[tuple[Clip, Frames] | None]:
    """None after each chunk, then the clip, without its bars if it has any, and its frames.

    Bars are those of all its frames. The first chunk gives a guess, by which all are scaled as they come; it
    holds when what it cuts off stays black and no bar is left inside, else they are decoded again.
    """

    def room(clip: Clip) -> Frames:
        return np.empty((clip.num_frames, clip.height, clip.width, 3), np.uint8)

    size, seeks_bars = (clip.width, clip.height), task.filters.crop_letterbox
    first, *others = _chunks(task.video, len(indices))
    frames = room(clip)
    frames[first] = video.frames(indices[first], size, seeks_bars)
    yield None
    if seeks_bars and (bars := find_bars(frames[first])) is not None:
        guess = _crop(clip, task.video, bars, task.encode.short_side)
        inner, holds = room(guess.clip), True
        for chunk in (first, *others):
            whole = video.frames(indices[chunk], guess.whole)
            inner[chunk] = guess.cut(whole)
            holds = holds and guess.leaves_black(whole)
            yield None
        if holds and find_bars(inner) is None:
            yield guess.clip, inner
            return
    for chunk in others:
        frames[chunk] = video.frames(indices[chunk], size)
        yield None
    if seeks_bars and (bars := find_bars(frames)) is not None:
        crop = _crop(clip, task.video, bars, task.encode.short_side)
        frames = room(crop.clip)
        for chunk in (first, *others):
            frames[chunk] = crop.cut(video.frames(indices[chunk], crop.whole))
            yield None
        clip = crop.clip
    yield clip, frames


def _encode_clip(
    video: Opened, sidecars: dict[SidecarFile, Sidecar], task: EncodeTask, clip: Clip
) -> Iterator[tuple[Clip, dict[str, bytes]] | None]:
    config = task.encode
    indices = frame_indices(video.timestamps_s, clip.start_s, clip.fps, clip.num_frames)
    for found in _decode(video, task, clip, indices):
        if found is None:
            yield None
        else:
            clip, frames = found
    scores = score_frames(frames, clip.fps)
    if task.video.is_picture:
        scores = dataclasses.replace(scores, frozen=None, motion=None)
    clip = dataclasses.replace(clip, **dataclasses.asdict(scores))
    if (reason := reason_to_leave_out(scores, task.filters)) is not None:
        clip = dataclasses.replace(clip, status="filtered", reason=reason)
        yield clip, {PREVIEW: _preview(frames)}
        return
    members = _encode_frames(frames, clip, config)
    meta = ClipMeta(
        clip_id=clip.clip_id,
        video_id=clip.video_id,
        name=task.video.name,
        start_s=clip.start_s,
        end_s=clip.end_s,
        fps=clip.fps,
        num_frames=clip.num_frames,
        width=clip.width,
        height=clip.height,
        label=clip.label,
        encoding=config.encoding,
    )
    ref = task.spans[clip.span].sidecar
    if ref is not None:
        if ref not in sidecars:
            sidecars[ref] = read_sidecar(Path(task.sidecars[ref.address]), ref)
        sidecar = sidecars[ref]
        end_s = clip.start_s + clip.num_frames / clip.fps
        before_end = video.timestamps_s[video.timestamps_s <= end_s + 1e-3]
        following = before_end[-1] if end_s <= video.timestamps_s[-1] + 1e-3 else end_s
        state, actions = resample_sidecar(sidecar, np.append(video.timestamps_s[indices], following))
        if sidecar.state_names:
            members[STATE] = _npy(state)
        if sidecar.action_names:
            members[ACTIONS] = _npy(actions)
        meta = dataclasses.replace(meta, state_names=sidecar.state_names, action_names=sidecar.action_names)
    members[META] = to_json(meta)
    yield clip, members


def _crop(clip: Clip, video: Video, bars: tuple[int, int, int, int], short_side: int) -> _Crop:
    """How a clip loses its bars.

    bars: the picture inside them, in pixels of the clip as it was. The crop is written down in pixels of the
    source, rounded inward, so that no row of a bar stays.
    """
    across, down = video.width / clip.width, video.height / clip.height
    left, top = int(np.ceil(bars[0] * across)), int(np.ceil(bars[1] * down))
    right, bottom = int((bars[0] + bars[2]) * across), int((bars[1] + bars[3]) * down)
    width, height = encoded_size(right - left, bottom - top, short_side, video.pixel_aspect)
    across_all, x = _scaled_side(video.width, left, right, width)
    down_all, y = _scaled_side(video.height, top, bottom, height)
    crop = (left, top, right - left, bottom - top)
    cropped = dataclasses.replace(clip, width=width, height=height, crop=crop)
    return _Crop(cropped, (across_all, down_all), (x, y))


def _scaled_side(side: int, first: int, last: int, size: int) -> tuple[int, int]:
    """The even length to scale a side to, and where to cut `size` pixels of first..last out of it."""
    whole = max(size, 2 * round(side * size / (last - first) / 2))
    while last * whole // side - -(-first * whole // side) < size:
        whole += 2
    return whole, -(-first * whole // side)


def _encode_frames(frames: Frames, clip: Clip, config: EncodeConfig) -> dict[str, bytes]:
    """The clip's pictures as members; decoded once more, so that what is written can be read."""
    if config.encoding == "jpeg":
        files = encode_jpegs(frames, config.jpeg_quality)
        decode_jpegs(files)
        return {frame_suffix(number): data for number, data in enumerate(files)}
    data = encode_frames(
        [frames], clip.width, clip.height, clip.fps, gop=config.gop, crf=config.crf, preset=config.preset
    )
    check_encoded(data, clip.num_frames)
    return {VIDEO: data}


def _preview(frames: Frames) -> bytes:
    """Three frames of a clip side by side, or its only one, small, as one JPEG."""
    step = max(1, min(frames.shape[1:3]) // PREVIEW_SIDE)
    moments = [len(frames) // 6, len(frames) // 2, 5 * len(frames) // 6] if len(frames) > 1 else [0]
    picked = frames[moments, ::step, ::step]
    return encode_jpegs(np.concatenate(list(picked), axis=1)[None], 80)[0]


def _npy(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()
