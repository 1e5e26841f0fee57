"""The index of a config's sources: every file looked at once, and kept until a file changes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_pipeline.clips import stable_id
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.execute import cluster, stream
from data_pipeline.format import DATASET_FILE, DEAD_LETTERS_FILE
from data_pipeline.isolate import CrashedError, OutOfMemoryError, TimedOutError
from data_pipeline.manifest import VIDEOS_FILE, DeadLetter, Video, from_parquet, to_jsonl, to_parquet
from data_pipeline.progress import Progress, Rates
from data_pipeline.sources import Listing, list_sources
from data_pipeline.stages import inspect_batch
from data_pipeline.storage import Storage

# Failures that another look may not see again: the machine may have been short of something.
PASSING = frozenset(error.__name__ for error in (TimedOutError, CrashedError, OutOfMemoryError))
INSPECT_BATCH = 8  # files in one task: a few tens of milliseconds each


@dataclass(frozen=True)
class Index:
    """The videos of a config's sources, and their listing.

    reuse_key: digits of the listing and of the limits on unknown files. is_reused: nothing was read anew.
    """

    videos: tuple[Video, ...]
    listing: Listing
    reuse_key: str
    is_reused: bool

    @property
    def usable(self) -> list[Video]:
        return [video for video in self.videos if video.status == "usable"]

    def fingerprint(self) -> str:
        """16 hex digits of what the sources hold; moving or touching files does not change it."""
        lines = sorted(f"{v.video_id} {v.sidecar_sha256}" for v in self.videos if v.status != "ignored")
        return stable_id("sources", *lines)[:16]

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(
                uri=video.uri,
                video_id=video.video_id,
                stage="list" if video.status == "ignored" else "inspect",
                error_class=video.error_class,
                reason=video.reason,
                attempts=video.attempts,
            )
            for video in self.videos
            if video.status != "usable"
        ]


def build_index(config: DataConfig, progress: Progress, force: bool = False) -> Index:
    """Look at every source file, save those that the index in `out` tells of when no file changed since.

    An unfinished data set's files whose decoder hung, crashed or ran out of memory are looked at again.
    force: look at every file, whatever `out` holds.
    Raises: UsageError, DataError as `list_sources` does.
    """
    listing = list_sources(config.sources)
    storage = Storage(config.out)
    reuse_key = stable_id("index", listing.fingerprint(), config.inspect.model_dump_json())[:16]
    known = {} if force else _known_videos(storage, listing, reuse_key)
    ignored = tuple(
        Video(stable_id("ignored", uri), uri, uri, "ignored", reason, "Ignored")
        for uri, reason in listing.ignored
    )
    files = [file for file in listing.files if file.uri not in known]
    if not files:
        videos = tuple(known[file.uri] for file in listing.files)
        return Index((*videos, *ignored), listing, reuse_key, is_reused=True)
    batches = [tuple(files[k : k + INSPECT_BATCH]) for k in range(0, len(files), INSPECT_BATCH)]
    found: list[list[Video]] = [[] for _ in batches]
    rates = Rates("index", len(files), "videos", progress)
    with cluster(config.ray):
        for number, video in stream(inspect_batch, batches, (config.inspect,), config.ray):
            found[number].append(video)
            rates.add(1, video.size_bytes, failed=video.status == "failed")
    anew = iter([video for batch in found for video in batch])
    videos = _without_twins([known.get(file.uri) or next(anew) for file in listing.files])
    return Index((*videos, *ignored), listing, reuse_key, is_reused=False)


def _known_videos(storage: Storage, listing: Listing, reuse_key: str) -> dict[str, Video]:
    """What the index in `out` tells of the listed files and need not be found out again, by uri."""
    if not storage.exists(VIDEOS_FILE):
        return {}
    try:
        videos, notes = from_parquet(storage.read(VIDEOS_FILE), Video)
    except DataError:  # cut short, or of another release: it is only there to spare another look
        return {}
    looked_at = {video.uri: video for video in videos if video.status != "ignored"}
    if notes.get("listing") != reuse_key or len(looked_at) != len(listing.files):
        return {}
    if storage.exists(DATASET_FILE):  # what failed is part of a finished set; --force looks again
        return looked_at
    return {uri: video for uri, video in looked_at.items() if video.error_class not in PASSING}


def _without_twins(videos: list[Video]) -> tuple[Video, ...]:
    """The second of two files of one name and content (from two sources) is no video of its own."""
    first: dict[str, str] = {}
    result = []
    for video in videos:
        twin = first.setdefault(video.video_id, video.uri)
        if twin != video.uri and video.status == "usable":
            reason = f"it has the name and content of {twin}"
            video = dataclasses.replace(video, status="failed", reason=reason, error_class="Duplicate")
        result.append(video)
    return tuple(result)


def publish_index(config: DataConfig, found: Index) -> None:
    """Write videos.parquet and the dead letters of inspection.

    Raises: DataError, after writing them, when no video is usable or too many failed.
    """
    storage = Storage(config.out)
    letters = found.dead_letters()
    if not found.is_reused:
        if not storage.exists(DATASET_FILE):  # a finished set's letters are of its clips too
            storage.publish(DEAD_LETTERS_FILE, to_jsonl(letters))
        publish_videos(storage, found)
    failed = [video for video in found.videos if video.status == "failed"]
    stop_past_limit(
        config, "videos", [f"{v.uri}: {v.reason}" for v in failed], len(failed) + len(found.usable)
    )
    if not found.usable:
        raise DataError(
            f"none of {len(failed)} files is a video that can be used; see {dead_letters_address(config)}"
        )


def publish_videos(storage: Storage, found: Index) -> None:
    """Write videos.parquet, with the listing and the limits it stands for."""
    notes = {"listing": found.reuse_key}
    storage.publish(VIDEOS_FILE, to_parquet(found.videos, Video, notes))


def stop_past_limit(config: DataConfig, what: str, failed: list[str], total: int) -> None:
    """Raises: DataError with the first reasons when more than the config's share failed."""
    if total and len(failed) / total > config.max_failed_fraction:
        first = "".join(f"\n  {line}" for line in failed[:5])
        raise DataError(
            f"{len(failed)} of {total} {what} failed, more than max_failed_fraction "
            f"{config.max_failed_fraction:g} allows; "
            f"all reasons are in {dead_letters_address(config)}. The first:{first}"
        )


def dead_letters_address(config: DataConfig) -> str:
    return Storage(config.out).address(DEAD_LETTERS_FILE)
