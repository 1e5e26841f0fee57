"""From a config to a finished data set: list, inspect, cut, plan, build, and publish dataset.json last.

Every step can be begun again: what is whole and of this config and these sources is kept, the rest is
made anew. Runs inside `execute.cluster` where it has work to hand out.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from data_pipeline.clips import ShardPlan, assign_splits, cut_video, plan_shards
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError, UsageError
from data_pipeline.execute import cluster, stream
from data_pipeline.format import (
    DATASET_FILE,
    DEAD_LETTERS_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SHARDS_FOLDER,
    SPLITS,
    VIDEO,
    DatasetInfo,
    ShardDone,
    dataset_fingerprint,
    done_name,
    index_name,
    read_info,
    read_shard,
    tar_name,
    to_json,
)
from data_pipeline.index import (
    Index,
    build_index,
    dead_letters_address,
    publish_index,
    publish_videos,
    stop_past_limit,
)
from data_pipeline.manifest import Clip, DeadLetter, Video, read_parquet, to_jsonl, to_parquet
from data_pipeline.progress import Progress, Rates
from data_pipeline.sources import SourceFile
from data_pipeline.stages import build_shard
from data_pipeline.storage import Storage

OURS = re.compile(r"^(?:(?P<stem>(?:train|eval)-\d{6})\.(?:tar|index\.parquet|done\.json)|\..*\.part)$")


@dataclass(frozen=True)
class Outcome:
    """A finished data set and how it came about; `is_new` is False when it was there already."""

    info: DatasetInfo
    videos: tuple[Video, ...]
    clips: tuple[Clip, ...]
    dead_letters: tuple[DeadLetter, ...]
    num_kept_shards: int
    is_new: bool


def encoder_versions() -> dict[str, str]:
    """Versions of whatever decides the bytes of a clip."""
    import av

    libraries = {f"lib{name[3:]}": ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return {"av": av.__version__} | {n: v for n, v in libraries.items() if n in ("libavcodec", "libswscale")}


def refuse_other(config: DataConfig, found: Index | None) -> DatasetInfo | None:
    """The finished data set at `out` when it is this very one; None when there is none.

    Raises: UsageError when it is another one's.
    """
    storage = Storage(config.out)
    if not storage.exists(DATASET_FILE):
        return None
    info = read_info(storage)
    other = "config" if info.config_fingerprint != config.fingerprint() else ""
    if not other and found is not None and info.source_fingerprint != found.fingerprint():
        other = "set of videos"
    if other:
        raise UsageError(
            f"{config.out} holds a finished data set of another {other}; "
            f"give another `out`, or --force to replace it"
        )
    return info


def shard(config: DataConfig, progress: Progress, force: bool = False) -> Outcome:
    """Bring the data set at `config.out` to its end, from wherever an earlier run left it.

    force: replace a finished data set of another config or of other videos.
    Raises: UsageError, DataError.
    """
    storage = Storage(config.out)
    with ExitStack() as stack:
        if not storage.exists(DATASET_FILE):
            stack.enter_context(cluster(config.ray))  # one for indexing and sharding both
        found = build_index(config, progress, force)
        if not force and (info := refuse_other(config, found)) is not None:
            if not found.is_reused:  # touched files, the same content: next time they need not be read
                publish_videos(storage, found)
            clips, _ = read_parquet(storage, MANIFEST_FILE, Clip)
            letters = (*found.dead_letters(), *_clip_letters(clips, {}))
            return Outcome(info, found.videos, tuple(clips), letters, sum(info.num_shards.values()), False)
        storage.remove(DATASET_FILE)
        publish_index(config, found)
        clips = _cut_all(config, found.usable)
        plans = plan_shards(clips, found.usable, config, encoder_versions())
        if not plans:
            longest = max(video.duration_s for video in found.usable)
            raise DataError(
                f"no video is as long as one clip: cut.length_s is {config.cut.length_s:g}, "
                f"the longest video {longest:.2f} s"
            )
        kept = _sweep(storage, plans)
        stack.enter_context(cluster(config.ray))
        _build(config, found, [plan for plan in plans if plan.stem not in kept], progress)
    return _finish(config, found, clips, plans, len(kept))


def _cut_all(config: DataConfig, videos: Sequence[Video]) -> list[Clip]:
    """Every clip with its split, in the manifest's order."""
    cut = {video.video_id: cut_video(video, config) for video in videos}
    with_clips = {name: len(clips) for name, clips in cut.items() if clips[0].status == "kept"}
    splits = assign_splits(with_clips, config.split.eval_fraction)
    clips = [
        dataclasses.replace(clip, split=splits.get(name, "")) for name, group in cut.items() for clip in group
    ]
    return sorted(clips, key=lambda clip: (clip.uri, clip.start_s, clip.clip_id))


def _sweep(storage: Storage, plans: list[ShardPlan]) -> set[str]:
    """Stems already done by this very plan; whatever else an unfinished job of ours left is removed."""
    wanted = {plan.stem: plan.fingerprint for plan in plans}
    names = storage.names(SHARDS_FOLDER)
    kept = set()
    for stem, fingerprint in wanted.items():
        paths = [tar_name(stem), index_name(stem), done_name(stem)]
        if all(path.rsplit("/", 1)[1] in names for path in paths):
            try:
                done = ShardDone.from_json(storage.read(done_name(stem)))
            except DataError:  # half a record is no record: the shard is built again
                continue
            if done.plan_fingerprint == fingerprint:
                kept.add(stem)
    for name in sorted(names, key=lambda name: not name.endswith(".done.json")):  # a done record goes first
        match = OURS.match(name)
        if match and match["stem"] not in kept:
            storage.remove(f"{SHARDS_FOLDER}/{name}")
    return kept


def _build(config: DataConfig, found: Index, plans: list[ShardPlan], progress: Progress) -> None:
    paths = {file.uri: file for file in found.listing.files}
    files = {video.video_id: paths[video.uri] for video in found.usable}
    tasks = [(plan, {name: files[name] for name in {clip.video_id for clip in plan.clips}}) for plan in plans]
    rates = Rates("shard", sum(len(plan.clips) for plan in plans), "clips", progress)
    for _, item in stream(_build_task, tasks, (config,), config.ray):
        if isinstance(item, int):
            rates.add(1, item, failed=item == 0)


def _build_task(
    task: tuple[ShardPlan, dict[str, SourceFile]], config: DataConfig
) -> Iterator[int | ShardDone]:
    plan, files = task
    yield from build_shard(plan, files, config.encode, config.inspect, config.out)


def _finish(
    config: DataConfig, found: Index, clips: list[Clip], plans: list[ShardPlan], num_kept: int
) -> Outcome:
    """Read the shards back, then publish dead letters, manifest and dataset.json, in that order."""
    storage = Storage(config.out)
    shards = [read_shard(storage, plan.stem) for plan in plans]
    members = {sample.key: (sample.stem, sample.members[VIDEO]) for s in shards for sample in s.samples}
    failures = {failure.clip_id: failure for s in shards for failure in s.done.failed}
    rows = []
    for clip in clips:
        if clip.clip_id in failures:
            reason = failures[clip.clip_id].reason
            rows.append(dataclasses.replace(clip, status="failed", reason=reason))
        elif clip.status == "kept":
            stem, member = members[clip.clip_id]
            rows.append(dataclasses.replace(clip, shard=stem, offset=member.offset, size_bytes=member.size))
        else:
            rows.append(clip)
    attempts = {name: (failure.error_class, failure.attempts) for name, failure in failures.items()}
    letters = (*found.dead_letters(), *_clip_letters(rows, attempts))
    storage.publish(DEAD_LETTERS_FILE, to_jsonl(letters))
    num_planned = sum(len(plan.clips) for plan in plans)
    failed = [f"{c.uri} at {c.start_s:g} s: {c.reason}" for c in rows if c.status == "failed"]
    stop_past_limit(config, "clips", failed, num_planned)
    if len(failed) == num_planned:
        raise DataError(f"all {num_planned} clips failed; see {dead_letters_address(config)}")
    storage.publish(MANIFEST_FILE, to_parquet(rows, Clip))
    status = Counter(clip.status for clip in rows)
    dones = [s.done for s in shards]
    info = DatasetInfo(
        format_version=FORMAT_VERSION,
        name=config.name,
        fingerprint=dataset_fingerprint(dones),
        num_videos=len({clip.video_id for clip in rows if clip.status == "kept"}),
        num_clips={split: sum(d.num_samples for d in dones if d.split == split) for split in SPLITS},
        num_shards={split: sum(d.split == split for d in dones) for split in SPLITS},
        num_filtered=status["filtered"],
        num_failed=status["failed"],
        total_bytes=sum(d.tar_bytes for d in dones),
        config_fingerprint=config.fingerprint(),
        source_fingerprint=found.fingerprint(),
        versions=encoder_versions(),
        state_names=_shared_names([video.state_names for video in found.usable]),
        action_names=_shared_names([video.action_names for video in found.usable]),
    )
    storage.publish(DATASET_FILE, to_json(info))
    return Outcome(info, found.videos, tuple(rows), letters, num_kept, True)


def _clip_letters(clips: Sequence[Clip], attempts: dict[str, tuple[str, int]]) -> list[DeadLetter]:
    return [
        DeadLetter(
            uri=clip.uri,
            video_id=clip.video_id,
            stage="encode",
            error_class=attempts.get(clip.clip_id, ("", 1))[0],
            reason=clip.reason,
            attempts=attempts.get(clip.clip_id, ("", 1))[1],
            clip_id=clip.clip_id,
            start_s=clip.start_s,
            end_s=clip.end_s,
        )
        for clip in clips
        if clip.status == "failed"
    ]


def _shared_names(names: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Column names that every video agrees on; empty when some lack them or differ."""
    return names[0] if len(set(names)) == 1 else ()
