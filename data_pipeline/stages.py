"""The per-item work of the pipeline: inspect a file, encode a video's clips, build a shard.

`inspect_file` and `encode_clips` run in a killable child (isolate.py); `inspect_safely` and `build_shard`
run in a worker and turn whatever happens to the child into a record with its reason. All are idempotent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.clips import ShardPlan, video_id
from data_pipeline.config import EncodeConfig, InspectConfig
from data_pipeline.decode import Decoder, inspect, open_video
from data_pipeline.encode import check_encoded, encode_frames, frame_indices
from data_pipeline.errors import DataError
from data_pipeline.format import ACTIONS, META, STATE, VIDEO, ClipMeta, FailedClip, ShardDone, to_json
from data_pipeline.isolate import CrashedError, TimedOutError, shared_child
from data_pipeline.manifest import Clip, Video
from data_pipeline.shards import ShardFile, publish_shard
from data_pipeline.sources import SourceFile
from data_pipeline.storage import Storage

ATTEMPTS = 2  # a hang or crash is tried once more: the machine may have been short of something
LONGEST_VIDEO_S = 7 * 24 * 3600.0
CHUNK_FRAMES = 16  # frames held in memory at once at the source's size
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class EncodedClip:
    """A clip's members by suffix, ready for a tar."""

    clip_id: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class Sidecar:
    """What is known beside the pixels: t (N,) seconds, state (N, S), actions (N, A), float32."""

    t: NDArray[np.float64]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


def read_sidecar(path: str) -> Sidecar:
    """The `.npz` beside a video. Raises: DataError with the reason when it is not what it should be."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"its sidecar {Path(path).name} cannot be read: {error}") from error
    t = np.asarray(arrays.get("t", ()), np.float64)
    if t.ndim != 1 or len(t) == 0 or not np.all(np.diff(t) > 0):
        raise DataError(f"its sidecar {Path(path).name} needs `t`: ascending seconds, one for each row")
    tables, names = {}, {}
    for key, names_key in (("state", "state_names"), ("actions", "action_names")):
        table = np.asarray(arrays.get(key, np.zeros((len(t), 0))), np.float32)
        if table.ndim != 2 or len(table) != len(t):
            raise DataError(f"its sidecar's {key} has shape {table.shape}; need ({len(t)}, size)")
        given = tuple(str(name) for name in arrays.get(names_key, ()))
        names[key] = given or tuple(f"{key}_{column}" for column in range(table.shape[1]))
        if len(names[key]) != table.shape[1]:
            raise DataError(f"its sidecar names {len(names[key])} columns of {table.shape[1]} in {key}")
        tables[key] = table
    return Sidecar(t, tables["state"], tables["actions"], names["state"], names["actions"])


def resample_sidecar(
    sidecar: Sidecar, shown_s: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State and actions on a clip's clock.

    shown_s: (F + 1,) source seconds of the frames shown, and of the one that would follow.
    Returns: state (F, S) as of each frame shown; actions (F, A), the mean of those applied from each
    frame to the next.
    """
    last = len(sidecar.t) - 1
    rows = np.clip(np.searchsorted(sidecar.t, shown_s[:-1] + 1e-3, side="right") - 1, 0, last)
    ends = np.maximum(np.searchsorted(sidecar.t, shown_s[1:] - 1e-3, side="left"), rows + 1)
    spans = [slice(a, b) for a, b in zip(rows, ends, strict=True)]
    actions = np.stack([sidecar.actions[span].mean(axis=0, dtype=np.float64) for span in spans])
    return sidecar.state[rows], actions.astype(np.float32)


def _hash_slowly(path: str) -> Iterator[str | None]:
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


def inspect_file(file: SourceFile) -> Iterator[Video | None]:
    """In the child: hash, headers, sidecar. Yields None while at work, then what is known so far, twice:
    first the file with its id, then with its facts. Raises: DataError with the reason."""
    content = ""
    for found in _hash_slowly(file.path):
        yield None
        content = found or ""
    known = Video(
        video_id=video_id(file.name, content),
        uri=file.uri,
        name=file.name,
        status="failed",
        size_bytes=file.size_bytes,
        content_sha256=content,
    )
    yield known
    facts = inspect(file.path)
    if facts.duration_s > LONGEST_VIDEO_S:
        raise DataError(f"its header claims {facts.duration_s / 3600:.0f} hours")
    known = known.with_facts(facts)
    if file.sidecar is not None:
        sidecar, content = read_sidecar(file.sidecar), ""
        for found in _hash_slowly(file.sidecar):
            content = found or ""
        known = dataclasses.replace(
            known,
            sidecar_uri=str(Path(file.uri).with_suffix(Path(file.sidecar).suffix)),
            sidecar_sha256=content,
            state_names=sidecar.state_names,
            action_names=sidecar.action_names,
        )
    yield known


def inspect_safely(file: SourceFile, config: InspectConfig) -> Video:
    """The record of a file, whatever it does to its decoder."""
    known = Video(video_id(file.name, ""), file.uri, file.name, "failed", size_bytes=file.size_bytes)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            task = shared_child(config.memory_bytes).stream(
                "data_pipeline.stages:inspect_file", file, timeout_s=config.timeout_s
            )
            for item in task:
                known = item or known
            return dataclasses.replace(known, attempts=attempt)
        except DataError as error:
            words = {"reason": str(error), "error_class": type(error).__name__, "attempts": attempt}
            known = dataclasses.replace(known, status="failed", **words)  # type: ignore[arg-type]
            if not isinstance(error, (TimedOutError, CrashedError)):
                break
    return known


def encode_clips(
    path: str, sidecar_path: str | None, clips: tuple[Clip, ...], config: EncodeConfig
) -> Iterator[EncodedClip | FailedClip]:
    """In the child: one result for each clip, in order; a damaged clip does not stop the next.

    Raises: DataError when the video as a whole does not open.
    """
    sidecar = read_sidecar(sidecar_path) if sidecar_path else None
    with open_video(path) as video:
        for clip in clips:
            try:
                yield EncodedClip(clip.clip_id, _encode_clip(video, sidecar, clip, config))
            except DataError as error:
                yield FailedClip(clip.clip_id, type(error).__name__, str(error))


def _encode_clip(
    video: Decoder, sidecar: Sidecar | None, clip: Clip, config: EncodeConfig
) -> dict[str, bytes]:
    indices = frame_indices(video.timestamps_s, clip.start_s, clip.fps, clip.num_frames)
    chunks = (video.frames(indices[k : k + CHUNK_FRAMES]) for k in range(0, len(indices), CHUNK_FRAMES))
    data = encode_frames(
        chunks, clip.width, clip.height, clip.fps, gop=config.gop, crf=config.crf, preset=config.preset
    )
    check_encoded(data, clip.num_frames)
    meta = ClipMeta(
        clip_id=clip.clip_id,
        video_id=clip.video_id,
        uri=clip.uri,
        start_s=clip.start_s,
        end_s=clip.end_s,
        fps=clip.fps,
        num_frames=clip.num_frames,
        width=clip.width,
        height=clip.height,
        split=clip.split,
        label=clip.label,
        state_names=sidecar.state_names if sidecar else (),
        action_names=sidecar.action_names if sidecar else (),
    )
    members = {VIDEO: data, META: to_json(meta)}
    if sidecar is not None:
        end_s = clip.start_s + clip.num_frames / clip.fps
        before_end = video.timestamps_s[video.timestamps_s <= end_s + 1e-3]
        following = before_end[-1] if end_s <= video.timestamps_s[-1] + 1e-3 else end_s
        state, actions = resample_sidecar(sidecar, np.append(video.timestamps_s[indices], following))
        if sidecar.state_names:
            members[STATE] = _npy(state)
        if sidecar.action_names:
            members[ACTIONS] = _npy(actions)
    return members


def _npy(array: NDArray[Any]) -> bytes:
    import io

    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()


def encode_safely(
    file: SourceFile, clips: tuple[Clip, ...], encode: EncodeConfig, limits: InspectConfig
) -> Iterator[EncodedClip | FailedClip]:
    """One result for each clip of a video, in order, whatever the file does to its decoder.

    A hang or crash is tried once more from the clip it struck, then costs the rest of the file.
    """
    left, attempt = clips, 1
    while left:
        try:
            task = shared_child(limits.memory_bytes).stream(
                "data_pipeline.stages:encode_clips",
                file.path,
                file.sidecar,
                left,
                encode,
                timeout_s=limits.timeout_s,
            )
            for item in task:
                left = left[1:]
                yield item
        except DataError as error:
            if isinstance(error, (TimedOutError, CrashedError)) and attempt < ATTEMPTS:
                attempt += 1
                continue
            for clip in left:
                yield FailedClip(clip.clip_id, type(error).__name__, str(error), attempt)
            return


def build_shard(
    plan: ShardPlan, files: dict[str, SourceFile], encode: EncodeConfig, limits: InspectConfig, out: str
) -> Iterator[int | ShardDone]:
    """One shard, from its plan to its done record. files: by video id.

    Yields: the bytes of each clip as it is done (0 when it failed), then the done record.
    """
    failed: list[FailedClip] = []
    with (
        tempfile.TemporaryDirectory(prefix="foreframe-") as folder,
        ShardFile(Path(folder) / "shard.tar") as tar,
    ):
        for video, group in itertools.groupby(plan.clips, key=lambda clip: clip.video_id):
            for result in encode_safely(files[video], tuple(group), encode, limits):
                if isinstance(result, FailedClip):
                    failed.append(result)
                    yield 0
                else:
                    tar.add(result.clip_id, result.members)
                    yield sum(map(len, result.members.values()))
        members = tar.finish()
        storage = Storage(out)
        yield publish_shard(
            storage, plan.stem, plan.split, tar.path, members, plan.fingerprint, tuple(failed)
        )


def inspect_batch(files: tuple[SourceFile, ...], config: InspectConfig) -> Iterator[Video]:
    """A task of several files: their records, in order."""
    for file in files:
        yield inspect_safely(file, config)
