"""The index of a config's sources: every file looked at once, and known again until it changes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.clips import stable_id
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.execute import cluster, stream
from data_pipeline.format import DATASET_FILE, DEAD_LETTERS_FILE
from data_pipeline.manifest import VIDEOS_FILE, DeadLetter, Video, from_parquet, to_jsonl, to_parquet
from data_pipeline.parts import PARTS_FOLDER
from data_pipeline.progress import Progress, Rates
from data_pipeline.sources import Ignored, Listing, SourceFile, list_sources
from data_pipeline.stages import PASSING, inspect_batch
from data_pipeline.storage import Storage

INSPECT_BATCH = 8  # files in one task: a few tens of milliseconds each
NOTE_EVERY = 2000  # files looked at between two notes of them, which a killed job finds again
NOTES = "videos-"
NOTE = re.compile(r"^videos-(\d{6})\.parquet$")
BEGUN = f"{PARTS_FOLDER}/begun"


@dataclass(frozen=True)
class Index:
    """The videos of a config's sources, and their listing. num_new: files that were looked at just now."""

    videos: tuple[Video, ...]
    listing: Listing
    num_new: int

    @property
    def usable(self) -> list[Video]:
        return [video for video in self.videos if video.status == "usable"]

    @property
    def failed(self) -> list[Video]:
        return [video for video in self.videos if video.status == "failed"]

    def fingerprint(self) -> str:
        """16 hex digits of what the sources hold; moving or touching files does not change it."""
        lines = sorted(
            f"{v.video_id} {v.sidecars_sha256} {v.asked}" for v in self.videos if v.status != "ignored"
        )
        return stable_id("sources", *lines)[:16]

    def sources(self) -> dict[str, tuple[SourceFile, Video]]:
        """Usable videos with their files, by video id."""
        files = {file.uri: file for file in self.listing.files}
        return {video.video_id: (files[video.uri], video) for video in self.usable if video.uri in files}

    def splits(self) -> dict[str, str]:
        """The sides that lists have decided, by video id."""
        return {
            name: split
            for name, (file, _) in self.sources().items()
            if (split := next((span.split for span in file.spans if span.split), None))
        }

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(
                uri=video.uri,
                video_id=video.video_id,
                stage="list" if video.error_class == "ListError" else "inspect",
                error_class=video.error_class,
                reason=video.reason,
                attempts=video.attempts,
            )
            for video in self.failed
        ]


def build_index(config: DataConfig, progress: Progress, force: bool = False) -> Index:
    """Look at every source file, save those that did not change since `out` last told of them.

    In an unfinished data set, files whose decoder hung or crashed or that the store did not give are tried
    again.
    force: look at every file, whatever `out` holds.
    Raises: UsageError, DataError as `list_sources` does.
    """
    listing = list_sources(config.sources, config.root, config.pictures)
    storage = Storage(config.out)
    known = {} if force else known_videos(storage, config)
    if not storage.exists(DATASET_FILE):  # what failed is part of a finished set; --redrive looks again
        known = {key: video for key, video in known.items() if video.error_class not in PASSING}
    return look_at(listing, known, config, progress)


def look_at(listing: Listing, known: dict[str, Video], config: DataConfig, progress: Progress) -> Index:
    """The index of a listing. known: videos by fingerprint of their entry, which need no other look."""
    storage = Storage(config.out)
    files = [file for file in listing.files if file.fingerprint() not in known]
    fresh: dict[str, Video] = {}
    if files:
        batches = [tuple(files[k : k + INSPECT_BATCH]) for k in range(0, len(files), INSPECT_BATCH)]
        rates = Rates("index", len(files), "videos", progress)
        notes = _next_note(storage)
        if not storage.is_local:  # rights to read but not to write are told of now, not after hours of work
            storage.publish(BEGUN, b"")
        unnoted: list[Video] = []
        with cluster(config.ray):
            for _, video in stream(inspect_batch, batches, (config,), config.ray):
                fresh[video.listing] = video
                unnoted.append(video)
                rates.add(1, video.size_bytes, failed=video.status == "failed")
                if len(unnoted) >= NOTE_EVERY:
                    _publish(storage, f"{PARTS_FOLDER}/{NOTES}{notes:06d}.parquet", unnoted, config)
                    unnoted, notes = [], notes + 1
    videos = []
    for file in listing.files:
        video = fresh.get(file.fingerprint()) or known[file.fingerprint()]
        asked = [(span.start_s, span.end_s, span.label, span.split) for span in file.spans]
        videos.append(dataclasses.replace(video, asked=stable_id(*asked)))
    ignored = [_ignored(entry) for entry in listing.ignored]
    return Index((*_without_twins(videos), *ignored), listing, len(files))


def _ignored(entry: Ignored) -> Video:
    name = stable_id("ignored", entry.uri, entry.reason)
    if entry.is_wanted:
        return Video(name, entry.uri, entry.uri, "failed", entry.reason, "ListError")
    return Video(name, entry.uri, entry.uri, "ignored", entry.reason, "Ignored")


def known_videos(storage: Storage, config: DataConfig) -> dict[str, Video]:
    """What `out` tells of files that a job of the same limits looked at, by their entry's fingerprint."""
    names = [f"{PARTS_FOLDER}/{name}" for name in storage.names(PARTS_FOLDER) if NOTE.match(name)]
    if storage.exists(VIDEOS_FILE):
        names.insert(0, VIDEOS_FILE)
    known: dict[str, Video] = {}
    for data in storage.read_many(names):
        try:
            videos, notes = from_parquet(data, Video)
        except DataError:  # cut short, or of another release: it is only there to spare another look
            continue
        if notes.get("look") == _look(config):
            known |= {v.listing: v for v in videos if v.listing and v.error_class != "Duplicate"}
    return known


def _look(config: DataConfig) -> str:
    """Of the settings that decide what a look at a file finds."""
    scenes = config.cut.scene_threshold if config.cut.kind == "scenes" else None
    pictures = (config.picture_s,) if config.pictures else ()
    return stable_id("look", config.inspect.model_dump_json(), scenes, *pictures)


def _next_note(storage: Storage) -> int:
    numbers = [int(found[1]) for name in storage.names(PARTS_FOLDER) if (found := NOTE.match(name))]
    return 1 + max(numbers, default=-1)


def _publish(storage: Storage, name: str, videos: Sequence[Video], config: DataConfig) -> None:
    storage.publish(name, to_parquet(videos, Video, {"look": _look(config)}))


def _without_twins(videos: list[Video]) -> tuple[Video, ...]:
    """The second of two files of one name and content (from two sources) is no video of its own."""
    first: dict[str, str] = {}
    result = []
    for video in videos:
        twin = first.setdefault(video.video_id, video.uri) if video.status == "usable" else video.uri
        if twin != video.uri:
            reason = f"it has the name and content of {twin}"
            video = dataclasses.replace(video, status="failed", reason=reason, error_class="Duplicate")
        result.append(video)
    return tuple(result)


def publish_index(config: DataConfig, found: Index) -> None:
    """Write videos.parquet and the dead letters of inspection.

    Raises: DataError, after writing them, when no video is usable or too many failed.
    """
    storage = Storage(config.out)
    if not storage.exists(DATASET_FILE):  # a finished set's letters are of its clips too
        storage.publish(DEAD_LETTERS_FILE, to_jsonl(found.dead_letters()))
    publish_videos(config, found)
    failed, usable = found.failed, found.usable
    stop_past_limit(config, "videos", [f"{v.uri}: {v.reason}" for v in failed], len(failed) + len(usable))
    if not usable:
        raise DataError(
            f"none of {len(failed)} files is a video that can be used; see {dead_letters_address(config)}"
        )


def publish_videos(config: DataConfig, found: Index) -> None:
    """Write videos.parquet; the notes of an unfinished look at them are not needed any more."""
    storage = Storage(config.out)
    _publish(storage, VIDEOS_FILE, found.videos, config)
    names = [name for name in storage.names(PARTS_FOLDER) if NOTE.match(name)]
    storage.remove_many([f"{PARTS_FOLDER}/{name}" for name in names])


def is_past_limit(config: DataConfig, num_failed: int, total: int) -> bool:
    return total > 0 and num_failed / total > config.max_failed_fraction


def stop_past_limit(config: DataConfig, what: str, failed: Sequence[str], total: int) -> None:
    """Raises: DataError with the first reasons when more than the config's share failed."""
    if is_past_limit(config, len(failed), total):
        first = "".join(f"\n  {line}" for line in failed[:5])
        raise DataError(
            f"{len(failed)} of {total} {what} failed, more than max_failed_fraction "
            f"{config.max_failed_fraction:g} allows; "
            f"all reasons are in {dead_letters_address(config)}. The first:{first}"
        )


def dead_letters_address(config: DataConfig) -> str:
    return Storage(config.out).address(DEAD_LETTERS_FILE)
