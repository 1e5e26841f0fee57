"""Dead letters tried again: what can be read now goes into new shards, committed shards never change."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

from data_pipeline.claim import alone, refuse_other
from data_pipeline.config import DataConfig
from data_pipeline.dataset import cut_all, encode_all, pack_all, plan_all, sweep
from data_pipeline.errors import UsageError
from data_pipeline.execute import cluster
from data_pipeline.finish import Outcome, finish, notes_of
from data_pipeline.format import MANIFEST_FILE, DatasetInfo
from data_pipeline.index import Index, known_videos, look_at, publish_videos
from data_pipeline.manifest import Clip, Video, read_parquet, to_parquet
from data_pipeline.pack import decide
from data_pipeline.previews import publish_previews
from data_pipeline.progress import Progress
from data_pipeline.sources import Listing, list_sources
from data_pipeline.storage import Storage


def redrive(config: DataConfig, progress: Progress) -> Outcome:
    """Try the videos and clips that failed once more; `is_new` is False when none can be used now either.

    Files that the data set does not know yet are not taken in: they want a data set of their own.
    Raises: UsageError when there is no finished data set of this config at `out`; DataError.
    """
    storage = Storage(config.out)
    with ExitStack() as stack:
        stack.enter_context(alone(config))
        info = refuse_other(config, None)
        if info is None:
            raise UsageError(
                f"{config.out} holds no finished data set whose failures could be tried again: "
                f"`foreframe shard` without --redrive finishes it"
            )
        storage.abort_uploads()
        stack.enter_context(cluster(config.ray))
        found = _look_again(config, progress)
        clips = _standing(storage, info)
        standing = [clip for clip in clips if clip.status != "failed"]
        letters = [clip for clip in clips if clip.status == "failed"]
        sources = found.sources()
        known = {clip.clip_id for clip in standing}
        todo = [clip for clip in cut_all(config, sources) if clip.clip_id not in known]
        tried = plan_all(config, todo, sources)
        before = {clip.clip_id: clip.attempts for clip in letters}
        rows = [
            dataclasses.replace(row, attempts=row.attempts + before.get(row.clip_id, 0))
            if row.status == "failed"
            else row
            for row in encode_all(config, tried, sources, progress)
        ]
        rows += [clip for clip in todo if clip.status != "kept"]
        gone = {row.clip_id for row in rows}
        rows += [clip for clip in letters if clip.clip_id not in gone and clip.video_id not in sources]
        decision = decide(rows, {v.video_id: v for v in found.usable}, config, found.splits(), standing)
        publish_previews(storage, rows, decision.clips)
        kept = sweep(storage, decision.shards, (done.stem for done in info.shards))
        pack_all(config, [plan for plan in decision.shards if plan.stem not in kept], progress)
        revision = info.revision + bool(decision.shards)
        notes = notes_of(config, found) | {"revision": str(revision)}
        storage.publish(MANIFEST_FILE, to_parquet(decision.clips, Clip, notes))
        publish_videos(config, found)
        outcome = finish(config, found, decision.clips, decision.shards, len(kept), revision, info.shards)
        return dataclasses.replace(outcome, is_new=bool(decision.shards))


def _standing(storage: Storage, info: DatasetInfo) -> list[Clip]:
    """The rows as dataset.json knows them: those of a redrive that was cut short count as failed."""
    stems = {done.stem for done in info.shards}
    clips, _ = read_parquet(storage, MANIFEST_FILE, Clip)
    return [
        dataclasses.replace(clip, status="failed", shard="", offset=None, size_bytes=None)
        if clip.status == "kept" and clip.shard not in stems
        else clip
        for clip in clips
    ]


def _look_again(config: DataConfig, progress: Progress) -> Index:
    """The index of the files that the data set knows, its failures looked at anew."""
    storage = Storage(config.out)
    videos = known_videos(storage, config)
    by_uri = {video.uri: video for video in videos.values()}
    listing = list_sources(config.sources, config.root, config.pictures)
    files = tuple(file for file in listing.files if file.uri in by_uri)
    if not files:
        raise UsageError(
            f"none of the files in `sources` is one of the {len(by_uri)} that {config.out} knows: "
            f"--redrive wants the sources where they were"
        )
    known: dict[str, Video] = {}
    for file in files:
        video = by_uri[file.uri]
        if video.status == "usable":  # as it was cut and committed, also when the file was touched since
            known[file.fingerprint()] = dataclasses.replace(video, listing=file.fingerprint())
    found = look_at(Listing(files, listing.ignored), known, config, progress)
    anew = [
        dataclasses.replace(video, attempts=video.attempts + by_uri[video.uri].attempts)
        if video.status == "failed" and video.uri in by_uri
        else video
        for video in found.videos
    ]
    gone = [video for uri, video in by_uri.items() if uri not in {file.uri for file in files}]
    return dataclasses.replace(found, videos=(*anew, *gone))
