"""The index of a config's sources: every file looked at once, and kept until a file changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.clips import stable_id
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.execute import Rates, cluster, stream
from data_pipeline.format import DATASET_FILE, DEAD_LETTERS_FILE
from data_pipeline.manifest import VIDEOS_FILE, DeadLetter, Video, from_parquet, to_jsonl, to_parquet
from data_pipeline.sources import Listing, list_sources
from data_pipeline.stages import inspect_batch
from data_pipeline.storage import Storage

Progress = Callable[[str, int, int, str], None]

INSPECT_BATCH = 8  # files in one task: a few tens of milliseconds each


@dataclass(frozen=True)
class Index:
    """The videos of a config's sources, and their listing; `is_reused`: nothing was read anew."""

    videos: tuple[Video, ...]
    listing: Listing
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


def build_index(config: DataConfig, progress: Progress) -> Index:
    """Look at every source file, or take the index that `out` holds when no file changed since.

    Raises: UsageError, DataError as `list_sources` does.
    """
    listing = list_sources(config.sources)
    storage = Storage(config.out)
    if storage.exists(VIDEOS_FILE):
        try:
            videos, notes = from_parquet(storage.read(VIDEOS_FILE), Video)
        except DataError:  # cut short, or of another release: it is only there to spare another look
            videos, notes = [], {}
        if notes.get("listing") == listing.fingerprint():
            return Index(tuple(videos), listing, is_reused=True)
    batches = [listing.files[k : k + INSPECT_BATCH] for k in range(0, len(listing.files), INSPECT_BATCH)]
    found: list[list[Video]] = [[] for _ in batches]
    rates = Rates("index", len(listing.files), "videos", progress)
    with cluster(config.ray):
        for number, video in stream(inspect_batch, batches, (config.inspect,), config.ray):
            found[number].append(video)
            rates.add(1, video.size_bytes, failed=video.status == "failed")
    videos = _without_twins([video for batch in found for video in batch])
    videos += [
        Video(stable_id("ignored", uri), uri, uri, "ignored", reason, "Ignored")
        for uri, reason in listing.ignored
    ]
    return Index(tuple(videos), listing, is_reused=False)


def _without_twins(videos: list[Video]) -> list[Video]:
    """The second of two files of one name and content (from two sources) is no video of its own."""
    first: dict[str, str] = {}
    result = []
    for video in videos:
        twin = first.setdefault(video.video_id, video.uri)
        if twin != video.uri and video.status == "usable":
            reason = f"it has the name and content of {twin}"
            video = dataclasses.replace(video, status="failed", reason=reason, error_class="Duplicate")
        result.append(video)
    return result


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
    """Write videos.parquet, with the listing it stands for."""
    notes = {"listing": found.listing.fingerprint()}
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
