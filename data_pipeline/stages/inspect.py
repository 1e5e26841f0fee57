"""What a file is: its hash, the facts of its headers, its sidecars, its scenes.

`inspect_file` runs in the child, what is around it in a worker.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.clips import video_id
from data_pipeline.config import DataConfig, InspectConfig
from data_pipeline.decode import inspect, inspect_picture, open_video, picture_format, read_head, refuse_early
from data_pipeline.encode import encoded_size
from data_pipeline.errors import DataError, StorageError
from data_pipeline.fetch import Scratch
from data_pipeline.isolate import CrashedError, TimedOutError, shared_child
from data_pipeline.manifest import Video
from data_pipeline.scenes import find_cuts
from data_pipeline.sidecar import read_sidecar
from data_pipeline.sources import SidecarFile, SourceFile, is_picture, is_video
from data_pipeline.stages.files import ATTEMPTS, end_if_all_would_fail, hash_slowly, sidecar_path

LONGEST_VIDEO_S = 7 * 24 * 3600.0
SCENE_SIDE = 128  # short side at which scenes are looked for


@dataclass(frozen=True)
class InspectTask:
    """What the child is told of a file: where it and its sidecars lie on this machine.

    scene_threshold: None where scenes are not looked for. picture_s: seconds that a still picture stands for,
    None where it is refused.
    """

    file: SourceFile
    path: str
    sidecars: tuple[tuple[SidecarFile, str], ...]
    scene_threshold: float | None
    picture_s: float | None


def inspect_file(task: InspectTask) -> Iterator[Video | None]:
    """In the child: hash, headers, sidecars, scenes. Yields None while at work, then what is known so far,
    twice: first the file with its id, then with its facts. Raises: DataError with the reason."""
    file, content = task.file, ""
    shown_s = _picture_s(task)  # a pipe or a device must not even be hashed
    for found in hash_slowly(task.path):
        yield None
        content = found or ""
    known = dataclasses.replace(_unknown(file), video_id=video_id(file.name, content), content_sha256=content)
    yield known
    facts = inspect(task.path) if shown_s is None else inspect_picture(task.path, shown_s)
    if facts.duration_s > LONGEST_VIDEO_S:
        raise DataError(f"its header claims {facts.duration_s / 3600:.0f} hours")
    known = known.with_facts(facts)
    if task.sidecars and known.is_picture:
        address = task.sidecars[0][0].address
        raise DataError(f"it is a picture, which has no states or actions: {address} cannot be its sidecar")
    if task.sidecars:
        contents: dict[str, str] = {}
        for ref, path in task.sidecars:
            if ref.address not in contents:
                for found in hash_slowly(path):
                    contents[ref.address] = found or ""
                    yield None
        digest = hashlib.sha256()
        for span in file.spans:
            about = span.sidecar
            told = about and (contents[about.address], *dataclasses.astuple(about)[3:])
            digest.update(f"{told}\n".encode(errors="backslashreplace"))
        sidecar = read_sidecar(Path(task.sidecars[0][1]), task.sidecars[0][0])
        known = dataclasses.replace(
            known,
            sidecars_sha256=digest.hexdigest(),
            state_names=sidecar.state_names,
            action_names=sidecar.action_names,
        )
    if task.scene_threshold is not None and known.is_picture:
        known = dataclasses.replace(known, cuts_s=())
    elif task.scene_threshold is not None:
        size = encoded_size(known.width, known.height, SCENE_SIDE, known.pixel_aspect)
        cuts = []
        with open_video(task.path, size=size) as video:
            for cut in find_cuts(video, task.scene_threshold):
                yield None
                if cut is not None:
                    cuts.append(cut)
        known = dataclasses.replace(known, cuts_s=tuple(cuts))
    yield known


def _picture_s(task: InspectTask) -> float | None:
    """Seconds that the file stands for if it is read as a picture: its first bytes or its ending say so, and
    its ending does not say that it is a video. Else None. Raises: DataError for what is refused unread."""
    name, kind = task.file.name, picture_format(read_head(task.path)[0])
    if task.picture_s is not None and (kind or is_picture(name)) and not is_video(name):
        return task.picture_s
    if kind:
        remedy = "`pictures: true` takes pictures too, each as a clip of one frame"
        if task.picture_s is not None:
            remedy = "if it is to be one, give it a picture's ending"
        raise DataError(f"it is a {kind} picture, not a video; {remedy}")
    refuse_early(task.path)
    return None


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


def inspect_safely(
    file: SourceFile,
    config: InspectConfig,
    scene_threshold: float | None = None,
    picture_s: float | None = None,
) -> Video:
    """The record of a file, whatever it does to its decoder; the last two as in InspectTask.

    Raises: DataError when no other file could be had either (`end_if_all_would_fail`).
    """
    known = _unknown(file)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with Scratch() as scratch:
                refs = list(dict.fromkeys(span.sidecar for span in file.spans if span.sidecar is not None))
                task = InspectTask(
                    file=file,
                    path=str(scratch.local(file.address)),
                    sidecars=tuple((ref, str(sidecar_path(scratch, ref))) for ref in refs),
                    scene_threshold=scene_threshold,
                    picture_s=picture_s,
                )
                items = shared_child(config.memory_bytes).stream(
                    "data_pipeline.stages.inspect:inspect_file", task, timeout_s=config.timeout_s
                )
                for item in items:
                    known = item or known
            return dataclasses.replace(known, attempts=attempt)
        except DataError as error:
            end_if_all_would_fail(file, error)
            words = {"reason": str(error), "error_class": type(error).__name__, "attempts": attempt}
            known = dataclasses.replace(known, status="failed", **words)  # type: ignore[arg-type]
            if not isinstance(error, (TimedOutError, CrashedError, StorageError)):
                break
    return known


def inspect_batch(files: tuple[SourceFile, ...], config: DataConfig) -> Iterator[Video]:
    """A task of several files: their records, in order."""
    threshold = config.cut.scene_threshold if config.cut.kind == "scenes" else None
    for file in files:
        yield inspect_safely(file, config.inspect, threshold, config.picture_s)
