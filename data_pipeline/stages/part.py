"""A part, from its plan to its rows. Runs in a worker; what the child cannot survive costs one clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from data_pipeline.clips import PartPlan
from data_pipeline.config import DataConfig, InspectConfig
from data_pipeline.errors import DataError, StorageError
from data_pipeline.fetch import Scratch
from data_pipeline.isolate import CrashedError, OutOfMemoryError, TimedOutError, shared_child
from data_pipeline.manifest import Clip, Video
from data_pipeline.parts import part_tar, place, publish_rows
from data_pipeline.shards import ShardFile
from data_pipeline.sources import SourceFile
from data_pipeline.stages.encode import EncodeTask, failed
from data_pipeline.stages.files import ATTEMPTS, end_if_all_would_fail, fetch, sidecar_path
from data_pipeline.storage import Storage

GIVE_UP_AFTER = 2  # clips in a row that a file's decoder hung or crashed on


def encode_safely(
    task: EncodeTask, clips: tuple[Clip, ...], limits: InspectConfig
) -> Iterator[tuple[Clip, dict[str, bytes]]]:
    """One result for each clip of a video, in order, whatever the file does to its decoder.

    A hang or crash is tried once more from the clip it struck, then costs that clip, as too little memory
    does at once; the next begins in a new child. A file that strikes clip after clip is given up.
    """
    left, attempt, struck = clips, 1, 0
    while left:
        try:
            items = shared_child(limits.memory_bytes).stream(
                "data_pipeline.stages.encode:encode_clips", task, left, timeout_s=limits.timeout_s
            )
            for item in items:
                if item is not None:
                    left, attempt, struck = left[1:], 1, 0
                    yield item
        except (TimedOutError, CrashedError, OutOfMemoryError) as error:
            if attempt < ATTEMPTS and not isinstance(error, OutOfMemoryError):
                attempt += 1
                continue
            struck += 1
            given_up = left if struck == GIVE_UP_AFTER else left[:1]
            yield from ((failed(clip, error, attempt), {}) for clip in given_up)
            left, attempt = left[len(given_up) :], 1
        except DataError as error:
            yield from ((failed(clip, error, attempt), {}) for clip in left)
            return


def build_part(
    plan: PartPlan, sources: dict[str, tuple[SourceFile, Video]], config: DataConfig, out: str
) -> Iterator[tuple[Clip, int] | list[Clip]]:
    """One part, from its plan to its rows. sources: by video id.

    Yields: each clip with its verdict, and its bytes, as it is done; then the part's rows.
    Raises: DataError when the part cannot be written, or no source can be had (`end_if_all_would_fail`).
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
    publish_rows(storage, plan.stem, rows)
    yield rows


def _encode_video(
    file: SourceFile, video: Video, clips: tuple[Clip, ...], config: DataConfig
) -> Iterator[tuple[Clip, dict[str, bytes]]]:
    with Scratch() as scratch:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                path = fetch(scratch, file, video)
                spans = [file.spans[clip.span] for clip in clips]
                refs = dict.fromkeys(span.sidecar for span in spans if span.sidecar is not None)
                sidecars = {ref.address: str(sidecar_path(scratch, ref)) for ref in refs}
                break
            except DataError as error:
                end_if_all_would_fail(file, error)
                if attempt < ATTEMPTS and isinstance(error, StorageError):
                    continue
                yield from ((failed(clip, error, attempt), {}) for clip in clips)
                return
        task = EncodeTask(str(path), video, file.spans, sidecars, config.encode, config.filters)
        yield from encode_safely(task, clips, config.inspect)
