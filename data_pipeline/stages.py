"""The per-item work of the pipeline: inspect a file, encode the clips of a part, put a shard together.

`inspect_file` and `encode_clips` run in a killable child (isolate.py); what is around them runs in a worker
and turns whatever happens to the child into a record with its reason. All are idempotent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.clips import PartPlan, video_id
from data_pipeline.config import DataConfig, EncodeConfig, FilterConfig, InspectConfig
from data_pipeline.decode import Decoder, Frames, inspect, open_video
from data_pipeline.encode import check_encoded, encode_frames, encoded_size, frame_indices
from data_pipeline.errors import DataError, MissingError, StorageError
from data_pipeline.fetch import Scratch
from data_pipeline.filters import reason_to_leave_out
from data_pipeline.format import ACTIONS, META, STATE, VIDEO, ClipMeta, frame_suffix, to_json
from data_pipeline.isolate import CrashedError, TimedOutError, shared_child
from data_pipeline.jpeg import decode_jpegs, encode_jpegs
from data_pipeline.manifest import Clip, Video
from data_pipeline.parts import part_tar, place, publish_rows
from data_pipeline.scenes import find_cuts
from data_pipeline.scores import find_bars, score_frames
from data_pipeline.shards import ShardFile
from data_pipeline.sidecar import Sidecar, read_sidecar, resample_sidecar
from data_pipeline.sources import SidecarFile, SourceFile, Span
from data_pipeline.storage import Storage

ATTEMPTS = 2  # a hang or crash is tried once more: the machine may have been short of something
GIVE_UP_AFTER = 2  # clips in a row that a file's decoder hung or crashed on
LONGEST_VIDEO_S = 7 * 24 * 3600.0
CHUNK_FRAMES = 16  # frames asked of a decoder at once
BLOCK_BYTES = 16 << 20
SCENE_SIDE = 128  # short side at which scenes are looked for
PREVIEW_SIDE = 72  # short side of what the data card shows of a clip that was left out
PREVIEW = "preview.jpg"  # such a clip's only member; it never reaches a shard


class ChangedError(DataError):
    """A file is not what it was when the job looked at it."""


# Failures that another look may not see again: the machine or the store may have been short of something.
PASSING = frozenset({"TimedOutError", "CrashedError", "OutOfMemoryError", "StorageError", "ChangedError"})


@dataclass(frozen=True)
class InspectTask:
    """What the child is told of a file: where it and its sidecars lie on this machine."""

    file: SourceFile
    path: str
    sidecars: tuple[tuple[SidecarFile, str], ...]
    scene_threshold: float | None


@dataclass(frozen=True)
class EncodeTask:
    """What the child is told of a video: its paths, and how its clips are to be made."""

    path: str
    video: Video
    spans: tuple[Span, ...]
    sidecars: dict[str, str]
    encode: EncodeConfig
    filters: FilterConfig


def _hash_slowly(path: str | Path) -> Iterator[str | None]:
    """None after each block read, so that a deadline knows we live; the sha256 at last."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                yield None
    except OSError as error:
        raise DataError(f"it cannot be opened: {error.strerror or error}") from error
    yield digest.hexdigest()


def inspect_file(task: InspectTask) -> Iterator[Video | None]:
    """In the child: hash, headers, sidecars, scenes. Yields None while at work, then what is known so far,
    twice: first the file with its id, then with its facts. Raises: DataError with the reason."""
    file, content = task.file, ""
    for found in _hash_slowly(task.path):
        yield None
        content = found or ""
    known = dataclasses.replace(_unknown(file), video_id=video_id(file.name, content), content_sha256=content)
    yield known
    facts = inspect(task.path)
    if facts.duration_s > LONGEST_VIDEO_S:
        raise DataError(f"its header claims {facts.duration_s / 3600:.0f} hours")
    known = known.with_facts(facts)
    if task.sidecars:
        digest = hashlib.sha256()
        for ref, path in task.sidecars:
            for found in _hash_slowly(path):
                content = found or ""
                yield None
            digest.update(f"{content} {ref.episode} {ref.offset_s}\n".encode())
        sidecar = read_sidecar(Path(task.sidecars[0][1]), task.sidecars[0][0])
        known = dataclasses.replace(
            known,
            sidecars_sha256=digest.hexdigest(),
            state_names=sidecar.state_names,
            action_names=sidecar.action_names,
        )
    if task.scene_threshold is not None:
        size = encoded_size(known.width, known.height, SCENE_SIDE, known.pixel_aspect)
        cuts = []
        with open_video(task.path, size=size) as video:
            for cut in find_cuts(video, task.scene_threshold):
                yield None
                if cut is not None:
                    cuts.append(cut)
        known = dataclasses.replace(known, cuts_s=tuple(cuts))
    yield known


def _unknown(file: SourceFile) -> Video:
    return Video(
        video_id=video_id(file.name, ""),
        uri=file.uri,
        name=file.name,
        status="failed",
        size_bytes=file.size_bytes,
        etag=file.etag,
        listing=file.fingerprint(),
    )


def inspect_safely(file: SourceFile, config: InspectConfig, scene_threshold: float | None = None) -> Video:
    """The record of a file, whatever it does to its decoder."""
    known = _unknown(file)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with Scratch() as scratch:
                refs = list(dict.fromkeys(span.sidecar for span in file.spans if span.sidecar is not None))
                task = InspectTask(
                    file=file,
                    path=str(scratch.local(file.address)),
                    sidecars=tuple((ref, str(_sidecar_path(scratch, ref))) for ref in refs),
                    scene_threshold=scene_threshold,
                )
                items = shared_child(config.memory_bytes).stream(
                    "data_pipeline.stages:inspect_file", task, timeout_s=config.timeout_s
                )
                for item in items:
                    known = item or known
            return dataclasses.replace(known, attempts=attempt)
        except DataError as error:
            words = {"reason": str(error), "error_class": type(error).__name__, "attempts": attempt}
            known = dataclasses.replace(known, status="failed", **words)  # type: ignore[arg-type]
            if not isinstance(error, (TimedOutError, CrashedError, StorageError)):
                break
    return known


def _sidecar_path(scratch: Scratch, ref: SidecarFile) -> Path:
    try:
        return scratch.local(ref.address)
    except MissingError as error:
        raise DataError(f"its sidecar is gone: {error}") from error


def inspect_batch(files: tuple[SourceFile, ...], config: DataConfig) -> Iterator[Video]:
    """A task of several files: their records, in order."""
    threshold = config.cut.scene_threshold if config.cut.kind == "scenes" else None
    for file in files:
        yield inspect_safely(file, config.inspect, threshold)


def encode_clips(task: EncodeTask, clips: tuple[Clip, ...]) -> Iterator[tuple[Clip, dict[str, bytes]] | None]:
    """In the child: each clip with its scores and verdict, in order, and its members when it is kept.

    None after each chunk of frames. A damaged clip does not stop the next.
    Raises: DataError when the video as a whole does not open.
    """
    sidecars: dict[SidecarFile, Sidecar] = {}
    with _Sizes(task.path) as sizes:
        for clip in clips:
            try:
                yield from _encode_clip(sizes, sidecars, task, clip)
            except DataError as error:
                yield _failed(clip, error), {}


def _failed(clip: Clip, error: DataError, attempts: int = 1) -> Clip:
    return dataclasses.replace(
        clip, status="failed", reason=str(error), error_class=type(error).__name__, attempts=attempts
    )


class _Sizes:
    """One video open at each size that is asked for; a context manager."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: dict[tuple[int, int], Decoder] = {}

    def at(self, width: int, height: int) -> Decoder:
        if (width, height) not in self._open:
            self._open[width, height] = open_video(self._path, size=(width, height))
        return self._open[width, height]

    def __enter__(self) -> _Sizes:
        return self

    def __exit__(self, *raised: object) -> None:
        for video in self._open.values():
            video.close()


def _decode(video: Decoder, indices: NDArray[np.int64]) -> Iterator[Frames]:
    for k in range(0, len(indices), CHUNK_FRAMES):
        yield video.frames(indices[k : k + CHUNK_FRAMES])


def _encode_clip(
    sizes: _Sizes, sidecars: dict[SidecarFile, Sidecar], task: EncodeTask, clip: Clip
) -> Iterator[tuple[Clip, dict[str, bytes]] | None]:
    config, video = task.encode, sizes.at(clip.width, clip.height)
    indices = frame_indices(video.timestamps_s, clip.start_s, clip.fps, clip.num_frames)
    chunks = []
    for chunk in _decode(video, indices):
        yield None
        chunks.append(chunk)
    frames = np.concatenate(chunks)
    if task.filters.crop_letterbox and (bars := find_bars(frames)) is not None:
        clip, whole, corner = _crop(clip, task.video, bars, config.short_side)
        chunks = []
        for chunk in _decode(sizes.at(*whole), indices):
            yield None
            chunks.append(chunk[:, corner[1] : corner[1] + clip.height, corner[0] : corner[0] + clip.width])
        frames = np.ascontiguousarray(np.concatenate(chunks))
    scores = score_frames(frames, clip.fps)
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


def _crop(
    clip: Clip, video: Video, bars: tuple[int, int, int, int], short_side: int
) -> tuple[Clip, tuple[int, int], tuple[int, int]]:
    """The clip without its bars; the size at which the whole picture is decoded for it; the corner to cut from.

    bars: the picture inside them, in pixels of the clip as it was. The crop is written down in pixels of the
    source, rounded inward, so that no row of a bar stays.
    """
    across, down = video.width / clip.width, video.height / clip.height
    left, top = int(np.ceil(bars[0] * across)), int(np.ceil(bars[1] * down))
    right, bottom = int((bars[0] + bars[2]) * across), int((bars[1] + bars[3]) * down)
    width, height = encoded_size(right - left, bottom - top, short_side, video.pixel_aspect)
    x_scale, y_scale = width / (right - left), height / (bottom - top)
    whole = (
        max(width, 2 * round(video.width * x_scale / 2)),
        max(height, 2 * round(video.height * y_scale / 2)),
    )
    corner = min(round(left * x_scale), whole[0] - width), min(round(top * y_scale), whole[1] - height)
    crop = (left, top, right - left, bottom - top)
    return dataclasses.replace(clip, width=width, height=height, crop=crop), whole, corner


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
    """Three frames of a clip side by side, small, as one JPEG."""
    step = max(1, min(frames.shape[1:3]) // PREVIEW_SIDE)
    picked = frames[[len(frames) // 6, len(frames) // 2, 5 * len(frames) // 6], ::step, ::step]
    return encode_jpegs(np.concatenate(list(picked), axis=1)[None], 80)[0]


def _npy(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()


def encode_safely(
    task: EncodeTask, clips: tuple[Clip, ...], limits: InspectConfig
) -> Iterator[tuple[Clip, dict[str, bytes]]]:
    """One result for each clip of a video, in order, whatever the file does to its decoder.

    A hang or crash is tried once more from the clip it struck, then costs that clip; the next begins in a new
    child. A file that strikes clip after clip is given up.
    """
    left, attempt, struck = clips, 1, 0
    while left:
        try:
            items = shared_child(limits.memory_bytes).stream(
                "data_pipeline.stages:encode_clips", task, left, timeout_s=limits.timeout_s
            )
            for item in items:
                if item is not None:
                    left, attempt, struck = left[1:], 1, 0
                    yield item
        except (TimedOutError, CrashedError) as error:
            if attempt < ATTEMPTS:
                attempt += 1
                continue
            struck += 1
            given_up = left if struck == GIVE_UP_AFTER else left[:1]
            yield from ((_failed(clip, error, attempt), {}) for clip in given_up)
            left, attempt = left[len(given_up) :], 1
        except DataError as error:
            yield from ((_failed(clip, error, attempt), {}) for clip in left)
            return


def _check_unchanged(file: SourceFile, video: Video, path: Path) -> None:
    """Raises: ChangedError when the file is not the one that was inspected; MissingError when it is gone."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise MissingError(f"it is gone since it was inspected: {error.strerror}") from error
    if "://" not in file.address:
        is_same = not file.mtime_ns or (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.mtime_ns)
    else:
        *_, content = _hash_slowly(path)
        is_same = content == video.content_sha256
    if not is_same:
        raise ChangedError("it changed since it was inspected; run the same command again when it is at rest")


def build_part(
    plan: PartPlan, sources: dict[str, tuple[SourceFile, Video]], config: DataConfig, out: str
) -> Iterator[tuple[Clip, int] | list[Clip]]:
    """One part, from its plan to its rows. sources: by video id.

    Yields: each clip with its verdict, and its bytes, as it is done; then the part's rows.
    """
    rows: list[Clip] = []
    storage = Storage(out)
    with storage.writing(part_tar(plan.stem)) as path, ShardFile(path) as tar:
        for name, group in itertools.groupby(plan.clips, key=lambda clip: clip.video_id):
            for clip, members in _encode_video(*sources[name], tuple(group), config):
                rows.append(clip)
                if members:
                    tar.add(clip.clip_id, members)
                yield clip, sum(map(len, members.values()))
        found = tar.finish()
    rows = place(plan.stem, rows, found)
    publish_rows(storage, plan.stem, rows, found)
    yield rows


def _encode_video(
    file: SourceFile, video: Video, clips: tuple[Clip, ...], config: DataConfig
) -> Iterator[tuple[Clip, dict[str, bytes]]]:
    with Scratch() as scratch:
        try:
            path = _fetch(scratch, file, video)
            refs = {ref.address: ref for clip in clips if (ref := file.spans[clip.span].sidecar) is not None}
            sidecars = {address: str(_sidecar_path(scratch, ref)) for address, ref in refs.items()}
        except DataError as error:
            attempts = ATTEMPTS if isinstance(error, StorageError) else 1
            yield from ((_failed(clip, error, attempts), {}) for clip in clips)
            return
        task = EncodeTask(str(path), video, file.spans, sidecars, config.encode, config.filters)
        yield from encode_safely(task, clips, config.inspect)


def _fetch(scratch: Scratch, file: SourceFile, video: Video) -> Path:
    for attempt in itertools.count(1):
        try:
            path = scratch.local(file.address)
            break
        except StorageError:  # it has been retried for a minute; once more, then it costs the file
            if attempt >= ATTEMPTS:
                raise
    _check_unchanged(file, video, path)
    return path
