"""What a worker hands to its child, made without a worker; and work that Ray's workers can import."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from data_pipeline.clips import cut_video
from data_pipeline.config import DataConfig, InspectConfig
from data_pipeline.manifest import Clip, Video
from data_pipeline.sources import SourceFile
from data_pipeline.stages import EncodeTask, inspect_safely

UNFILTERED = {"max_black": None, "max_frozen": None, "crop_letterbox": False}


def task_of(
    file: SourceFile, config: DataConfig, limits: InspectConfig, video: Video | None = None
) -> tuple[EncodeTask, tuple[Clip, ...]]:
    """The task of encoding a file, and its clips that are worth a try."""
    video = video or inspect_safely(file, limits)
    assert video.status == "usable", video.reason
    sidecars = {span.sidecar.address: span.sidecar.address for span in file.spans if span.sidecar}
    task = EncodeTask(file.address, video, file.spans, sidecars, config.encode, config.filters)
    return task, tuple(c for c in cut_video(video, file.spans, config) if c.status == "kept")


def count_to(item: int, *shared: int) -> Iterator[int]:
    yield from range(item)


def whose_code(item: int, *shared: int) -> Iterator[tuple[str, str]]:
    """Where a worker's data_pipeline lies, and that of its child."""
    import data_pipeline
    from data_pipeline.isolate import Child

    child = Child(1 << 30)
    try:
        (theirs,) = child.stream("tests.data_pipeline.tasks:own_code", timeout_s=60.0)
    finally:
        child.close()
    yield str(data_pipeline.__file__), theirs


def own_code() -> Iterator[str]:
    import data_pipeline

    yield str(data_pipeline.__file__)


def fill_the_disk(item: int) -> Iterator[int]:
    yield item
    raise OSError(errno.ENOSPC, "No space left on device", f"/shards/{item}.tar")
