"""The end of a job: dead letters, data card, dataset.json last; and the limit past which there is none."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_pipeline.card import publish_card
from data_pipeline.clips import stable_id
from data_pipeline.config import DataConfig
from data_pipeline.encode import EndedError, encoder_versions
from data_pipeline.errors import DataError
from data_pipeline.format import (
    DATASET_FILE,
    DEAD_LETTERS_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SPLITS,
    DatasetInfo,
    ShardDone,
    dataset_fingerprint,
    done_name,
    sha256,
    to_json,
)
from data_pipeline.index import Index, dead_letters_address, is_past_limit, stop_past_limit
from data_pipeline.manifest import Clip, DeadLetter, Video, to_jsonl
from data_pipeline.pack import ShardPlan
from data_pipeline.parts import PARTS_FOLDER
from data_pipeline.storage import Storage

OURS_IN_PARTS = re.compile(
    r"^(?:part-[0-9a-f]{20}\.(?:tar|clips\.parquet)|videos-\d{6}\.parquet|begun|\.(?:part|videos)-.*\.part)$"
)


@dataclass(frozen=True)
class Outcome:
    """A finished data set and how it came about; `is_new` is False when it was there already."""

    info: DatasetInfo
    videos: tuple[Video, ...]
    clips: tuple[Clip, ...]
    dead_letters: tuple[DeadLetter, ...]
    num_kept_shards: int
    is_new: bool


def notes_of(config: DataConfig, found: Index) -> dict[str, str]:
    """What a manifest was decided from: it holds as long as these are the same."""
    versions = stable_id(*sorted(encoder_versions().items()))
    usable = stable_id(*sorted(video.video_id for video in found.usable))
    uris = stable_id(*sorted(f"{video.uri} {video.etag}" for video in found.usable))
    return {
        "config": config.fingerprint(),
        "uris": uris,
        "sources": found.fingerprint(),
        "usable": usable,
        "versions": versions,
    }


class Limit:
    """Counts clips that failed, and tells when they are too many of `total`.

    A video that ends before its header says counts once, however many clips the header promised.
    aside: clips that failed before any was encoded. total 0: no limit.
    """

    def __init__(self, config: DataConfig, total: int, aside: Iterable[Clip] = ()) -> None:
        self._config, self._total = config, total
        self._ended: set[str] = set()
        self.failed: list[Clip] = []
        self.count(aside)

    def count(self, clips: Iterable[Clip]) -> None:
        for clip in clips:
            if clip.status != "failed" or clip.video_id in self._ended:
                self._total -= clip.status == "failed" and self._total > 0
                continue
            if clip.error_class == EndedError.__name__:
                self._ended.add(clip.video_id)
            self.failed.append(clip)

    @property
    def is_past(self) -> bool:
        return is_past_limit(self._config, len(self.failed), self._total)

    def stop(self) -> None:
        """Raises: DataError with the first reasons when it is past."""
        words = [f"{clip.uri} at {clip.start_s:g} s: {clip.reason}" for clip in self.failed]
        stop_past_limit(self._config, "clips", words, self._total)


def stop_past_limit_of_clips(config: DataConfig, found: Index, rows: Sequence[Clip], total: int) -> None:
    """Write the dead letters. total: clips to encode. Raises: DataError when too many failed."""
    Storage(config.out).publish(DEAD_LETTERS_FILE, to_jsonl([*found.dead_letters(), *clip_letters(rows)]))
    tried = [clip for clip in rows if clip.status != "filtered" or clip.phash]
    Limit(config, total, rows).stop()
    if tried and all(clip.status == "failed" for clip in tried):
        raise DataError(f"all {len(tried)} clips failed; see {dead_letters_address(config)}")


def finish(
    config: DataConfig,
    found: Index,
    clips: list[Clip],
    plans: Sequence[ShardPlan],
    num_kept: int,
    revision: int = 0,
    before: Sequence[ShardDone] = (),
) -> Outcome:
    """Publish dead letters, the data card, and dataset.json last; then the parts are not needed any more.

    plans: of the shards made by this job. before: done records of shards that they are added to.
    """
    storage = Storage(config.out)
    dones = [*before, *read_done(storage, plans).values()]
    dones.sort(key=lambda done: (SPLITS.index(done.split), done.stem))
    letters = (*found.dead_letters(), *clip_letters(clips))
    storage.publish(DEAD_LETTERS_FILE, to_jsonl(letters))
    status = Counter(clip.status for clip in clips)
    info = DatasetInfo(
        format_version=FORMAT_VERSION,
        name=config.name,
        fingerprint=dataset_fingerprint(dones),
        revision=revision,
        num_videos=len({clip.video_id for clip in clips if clip.status == "kept"}),
        num_clips={split: sum(d.num_samples for d in dones if d.split == split) for split in SPLITS},
        num_shards={split: sum(d.split == split for d in dones) for split in SPLITS},
        num_filtered=status["filtered"],
        num_failed=status["failed"],
        total_bytes=sum(d.tar_bytes for d in dones),
        config_fingerprint=config.fingerprint(),
        source_fingerprint=found.fingerprint(),
        manifest_sha256=sha256(storage.read(MANIFEST_FILE)),
        versions=encoder_versions(),
        state_names=_shared_names([video.state_names for video in found.usable]),
        action_names=_shared_names([video.action_names for video in found.usable]),
        shards=tuple(dones),
    )
    assert sum(info.num_clips.values()) == status["kept"]
    publish_card(storage, config, info, found.videos, clips)
    storage.publish(DATASET_FILE, to_json(info))
    remove_parts(storage)
    return Outcome(info, found.videos, tuple(clips), letters, num_kept, True)


def read_done(storage: Storage, plans: Sequence[ShardPlan]) -> dict[str, ShardDone]:
    """The done records of shards, by stem. Raises: DataError when one is not of its plan."""
    found = {}
    for plan, data in zip(plans, storage.read_many([done_name(plan.stem) for plan in plans]), strict=True):
        done = ShardDone.from_json(data)
        if done.plan_fingerprint != plan.fingerprint:
            raise DataError(
                f"{storage.address(done_name(plan.stem))} is not of this job: another one wrote there at the "
                f"same time; run the same command again, alone"
            )
        found[plan.stem] = done
    return found


def remove_parts(storage: Storage) -> None:
    """Delete what a job left in the parts' folder, and the folder when nothing else lies there."""
    ours = [name for name in storage.names(PARTS_FOLDER) if OURS_IN_PARTS.match(name)]
    storage.remove_many([f"{PARTS_FOLDER}/{name}" for name in ours])
    folder = storage.local_path(PARTS_FOLDER)
    if folder is not None:
        with contextlib.suppress(OSError):  # absent, or something that is not ours lies in it
            folder.rmdir()


def clip_letters(clips: Iterable[Clip]) -> list[DeadLetter]:
    """The dead letters of clips that failed, in the manifest's order."""
    failed = (clip for clip in clips if clip.status == "failed")
    return [
        DeadLetter(
            uri=clip.uri,
            video_id=clip.video_id,
            stage="encode",
            error_class=clip.error_class,
            reason=clip.reason,
            attempts=clip.attempts,
            clip_id=clip.clip_id,
            start_s=clip.start_s,
            end_s=clip.end_s,
        )
        for clip in sorted(failed, key=lambda clip: (clip.uri, clip.start_s, clip.end_s, clip.clip_id))
    ]


def _shared_names(names: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Column names that every video agrees on; empty when some lack them or differ."""
    return names[0] if len(set(names)) == 1 else ()
