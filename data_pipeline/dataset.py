"""From a config to a finished data set: list, inspect, cut, encode, decide, pack, and dataset.json last.

Every step can be begun again: what is whole and of this config and these sources is kept, the rest is
made anew. Runs inside `execute.cluster` where it has work to hand out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from data_pipeline.claim import alone, refuse_other
from data_pipeline.clips import PartPlan, cut_video, plan_parts
from data_pipeline.config import DataConfig
from data_pipeline.encode import encoder_versions
from data_pipeline.errors import DataError, UsageError
from data_pipeline.execute import cluster, stream
from data_pipeline.finish import (
    Limit,
    Outcome,
    clip_letters,
    finish,
    notes_of,
    read_done,
    remove_parts,
    stop_past_limit_of_clips,
)
from data_pipeline.format import (
    CARD_FILE,
    DATASET_FILE,
    MANIFEST_FILE,
    SHARDS_FOLDER,
    SPLITS,
    DatasetInfo,
    ShardDone,
    done_name,
    index_name,
    sha256,
    tar_name,
    to_json,
)
from data_pipeline.index import (
    Index,
    build_index,
    publish_index,
    publish_videos,
)
from data_pipeline.manifest import Clip, Video, from_parquet, read_parquet, to_parquet
from data_pipeline.pack import ShardPlan, build_shard, decide, plan_shard
from data_pipeline.parts import finished_parts, read_rows
from data_pipeline.previews import PREVIEWS_FILE, publish_previews
from data_pipeline.progress import Progress, Rates
from data_pipeline.sources import SourceFile
from data_pipeline.stages import PASSING, build_part
from data_pipeline.storage import Storage

STEM = r"(?:train|eval)-\d{6}"
OF_SHARD = re.compile(rf"^(?P<stem>{STEM})\.(?:tar|index\.parquet|done\.json)$")
HALF_SHARD = re.compile(rf"^\.{STEM}\..*\.part$")
HALF = re.compile(
    r"^\.(?:(?:manifest|videos|previews)\.parquet|dataset\.(?:json|html)|dead_letters\.jsonl)\..*\.part$"
)
Sources = Mapping[str, tuple[SourceFile, Video]]


def shard(config: DataConfig, progress: Progress, force: bool = False) -> Outcome:
    """Bring the data set at `config.out` to its end, from wherever an earlier run left it.

    force: replace a finished data set of another config or of other videos.
    Raises: UsageError, DataError.
    """
    storage = Storage(config.out)
    with ExitStack() as stack:
        stack.enter_context(alone(config))
        if not storage.exists(DATASET_FILE):
            stack.enter_context(cluster(config.ray))  # one for all stages
        found = build_index(config, progress, force)
        if not force and (info := refuse_other(config, found)) is not None:
            if found.num_new:  # touched files, the same content: next time they need not be read
                publish_videos(config, found)
            if sha256(storage.read(MANIFEST_FILE)) != info.manifest_sha256:
                raise DataError(
                    f"{storage.address(MANIFEST_FILE)} is not the one that {DATASET_FILE} names: where a "
                    f"--redrive was cut short, the same command with --redrive finishes it; else it is "
                    f"damaged: remove it and {DATASET_FILE}, and the same command writes both anew; "
                    f"whole shards are kept"
                )
            rows, _ = read_parquet(storage, MANIFEST_FILE, Clip)
            info, num_mended = _mend(config, found, info, rows, progress)
            sweep(storage, (), [done.stem for done in info.shards])
            remove_parts(storage)
            letters = (*found.dead_letters(), *clip_letters(rows))
            return Outcome(info, found.videos, tuple(rows), letters, len(info.shards) - num_mended, False)
        clips, revision, is_others = (None, 0, False) if force else _decided(storage, notes_of(config, found))
        if is_others and storage.exists(CARD_FILE):
            raise UsageError(
                f"{config.out} held a finished data set of another config, of other videos or made with "
                f"other libraries, whose {DATASET_FILE} is gone; give another `out`, or --force to replace it"
            )
        for name in (DATASET_FILE, *([CARD_FILE] if clips is None else ())):
            storage.remove(name)
        publish_index(config, found)
        stack.enter_context(cluster(config.ray))
        return _make(config, found, clips, revision, progress)


def _mend(
    config: DataConfig, found: Index, info: DatasetInfo, clips: Sequence[Clip], progress: Progress
) -> tuple[DatasetInfo, int]:
    """Make again the shards of a finished set of which a file is missing; how many there were."""
    storage = Storage(config.out)
    there = set(storage.names(SHARDS_FOLDER))
    gone = {done.stem for done in info.shards if not _is_there(done.stem, there)}
    if not gone:
        return info, 0
    sources = found.sources()
    plans = [plan for plan in plans_of(clips) if plan.stem in gone]
    with cluster(config.ray):
        placed = _find_pieces(config, plans, cut_all(config, sources), sources, progress)
        pack_all(config, placed, progress)
    made = read_done(storage, placed)
    shards = tuple(made.get(done.stem, done) for done in info.shards)
    if any(new.tar_sha256 != old.tar_sha256 for new, old in zip(shards, info.shards, strict=True)):
        raise AssertionError("the members are the same, the tars are not")
    if shards != info.shards:  # the index was written by another release of its library
        info = dataclasses.replace(info, shards=shards)
        storage.publish(DATASET_FILE, to_json(info))
    return info, len(gone)


def _is_there(stem: str, names: Collection[str]) -> bool:
    return all(path(stem).rsplit("/", 1)[1] in names for path in (tar_name, index_name, done_name))


def _make(
    config: DataConfig, found: Index, clips: list[Clip] | None, revision: int, progress: Progress
) -> Outcome:
    """clips: the manifest, when an earlier run of this very job has decided it."""
    storage = Storage(config.out)
    storage.abort_uploads()
    sources = found.sources()
    cut = cut_all(config, sources)
    plans: list[ShardPlan] = []
    if clips is None:
        aside = [clip for clip in cut if clip.status != "kept"]
        total = sum(clip.status != "filtered" for clip in cut)
        limit = Limit(config, total, aside)
        rows = [*encode_all(config, plan_all(config, cut, sources), sources, progress, limit), *aside]
        stop_past_limit_of_clips(config, found, rows, total)
        decision = decide(rows, {v.video_id: v for v in found.usable}, config, found.splits())
        clips, plans = decision.clips, decision.shards
        _check_kept(config, found, clips)
        storage.remove(PREVIEWS_FILE)  # of another try or config: those that are there would be kept
        publish_previews(storage, rows, clips)
        del rows  # as many as clips
        storage.publish(MANIFEST_FILE, to_parquet(clips, Clip, notes_of(config, found)))
    wanted = plans or plans_of(clips)
    kept = sweep(storage, wanted)
    missing = [plan for plan in wanted if plan.stem not in kept]
    if missing and not plans:
        missing = _find_pieces(config, missing, cut, sources, progress)
    pack_all(config, missing, progress)
    return finish(config, found, clips, wanted, len(kept), revision)


def _decided(storage: Storage, notes: dict[str, str]) -> tuple[list[Clip] | None, int, bool]:
    """The manifest that an earlier run of this very job left before its shards were all written, and its
    revision; else None, 0, and whether there is one of another job."""
    if not storage.exists(MANIFEST_FILE):
        return None, 0, False
    try:
        clips, found = from_parquet(storage.read(MANIFEST_FILE), Clip)
    except DataError:  # of another release: it is decided anew
        return None, 0, False
    is_ours = all(found.get(key) == value for key, value in notes.items())
    return (clips, int(found.get("revision", 0)), False) if is_ours else (None, 0, True)


def cut_all(config: DataConfig, sources: Sources) -> list[Clip]:
    """Every clip of every usable video."""
    return [clip for file, video in sources.values() for clip in cut_video(video, file.spans, config)]


def plan_all(config: DataConfig, clips: Iterable[Clip], sources: Sources) -> list[PartPlan]:
    videos = {name: video for name, (_, video) in sources.items()}
    return plan_parts((c for c in clips if c.status == "kept"), videos, config, encoder_versions())


def encode_all(
    config: DataConfig,
    plans: Sequence[PartPlan],
    sources: Sources,
    progress: Progress,
    limit: Limit | None = None,
) -> list[Clip]:
    """The rows of all parts, those of finished ones read and the others made, also those with a clip that
    failed for a reason that may have passed.

    As soon as it is certain that more fail than the limit allows, it ends with the rows that there are.
    """
    storage = Storage(config.out)
    rows = {
        stem: found
        for stem, found in read_rows(storage, finished_parts(storage, plans)).items()
        if not any(clip.error_class in PASSING for clip in found)
    }
    todo = [plan for plan in plans if plan.stem not in rows]
    tasks = [(plan, {name: sources[name] for name in {c.video_id for c in plan.clips}}) for plan in todo]
    rates = Rates("encode", sum(len(plan.clips) for plan in todo), "clips", progress)
    limit = limit or Limit(config, 0)
    limit.count(clip for found in rows.values() for clip in found)
    for number, item in stream(_encode_task, tasks, (config, _absolute(storage)), config.ray):
        if isinstance(item, list):
            rows[todo[number].stem] = item
            continue
        clip, num_bytes = item
        rates.add(1, num_bytes, filtered=clip.status == "filtered", failed=clip.status == "failed")
        limit.count([clip])
        if limit.is_past:
            told = [row for found in rows.values() for row in found]
            there = {row.clip_id for row in told}
            return [*told, *(clip for clip in limit.failed if clip.clip_id not in there)]
    return [clip for plan in plans for clip in _as_planned(plan, rows[plan.stem])]


def _as_planned(plan: PartPlan, rows: Sequence[Clip]) -> Iterator[Clip]:
    """Rows of a part that an earlier job made, with what the listing says of their clips today."""
    for clip, row in zip(plan.clips, rows, strict=True):
        assert clip.clip_id == row.clip_id
        yield dataclasses.replace(
            row, uri=clip.uri, etag=clip.etag, recording=clip.recording, label=clip.label, span=clip.span
        )


def _absolute(storage: Storage) -> str:
    return os.path.abspath(storage.root) if storage.is_local else storage.root


def _encode_task(
    task: tuple[PartPlan, dict[str, tuple[SourceFile, Video]]], config: DataConfig, out: str
) -> Iterator[tuple[Clip, int] | list[Clip]]:
    yield from build_part(*task, config, out)


def _check_kept(config: DataConfig, found: Index, clips: Sequence[Clip]) -> None:
    if any(clip.status == "kept" for clip in clips):
        return
    if not any(clip.phash for clip in clips):
        longest = max(video.duration_s for video in found.usable)
        shorter = math.floor(10 * longest) / 10 or longest  # to the tenth of a second that is in all of it
        raise DataError(
            f"no video is as long as one clip: cut.length_s is {config.cut.length_s:g}, "
            f"the longest video {longest:.2f} s: shorter clips are cut with cut.length_s={shorter:g} "
            f"cut.stride_s={shorter:g}"
        )
    reasons = Counter(clip.reason.split(":")[0] for clip in clips if clip.status == "filtered")
    listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    raise DataError(f"the filters leave no clip ({listed}): loosen them under `filters`")


def plans_of(clips: Iterable[Clip]) -> list[ShardPlan]:
    """The shards that a manifest tells of, without the places of their clips in parts."""
    bundles: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.status == "kept":
            bundles.setdefault(clip.shard, []).append(clip)
    plans = []
    for stem in sorted(bundles, key=lambda stem: (SPLITS.index(stem.split("-")[0]), stem)):
        bundle = sorted(bundles[stem], key=lambda clip: clip.offset or 0)
        plans.append(plan_shard(stem, bundle[0].split, bundle))
    return plans


def sweep(storage: Storage, plans: Sequence[ShardPlan], standing: Iterable[str] = ()) -> set[str]:
    """Stems already done by this very plan; whatever else an unfinished job of ours left is removed.

    standing: stems of shards that are not to be touched.
    """
    sizes = {entry.name.rsplit("/", 1)[-1]: entry.size_bytes for entry in storage.walk(SHARDS_FOLDER)}
    names = sorted(sizes)
    whole = [plan for plan in plans if _is_there(plan.stem, sizes.keys())]
    dones = storage.read_many([done_name(plan.stem) for plan in whole])
    indexes = storage.read_many([index_name(plan.stem) for plan in whole])
    kept = set()
    for plan, data, index in zip(whole, dones, indexes, strict=True):
        with contextlib.suppress(DataError):  # half a record is no record: the shard is built again
            done = ShardDone.from_json(data)
            size = sizes[tar_name(plan.stem).rsplit("/", 1)[1]]
            if (done.stem, done.split, done.plan_fingerprint, done.tar_bytes, done.index_sha256) == (
                *(plan.stem, plan.split, plan.fingerprint),
                *(size, sha256(index)),
            ):
                kept.add(plan.stem)
    safe = kept.union(standing)
    stray = [
        name
        for name in names
        if HALF_SHARD.match(name) or ((match := OF_SHARD.match(name)) and match["stem"] not in safe)
    ]
    for ending in (".done.json", ""):  # done records go first
        storage.remove_many([f"{SHARDS_FOLDER}/{name}" for name in stray if name.endswith(ending)])
        stray = [name for name in stray if not name.endswith(".done.json")]
    if storage.is_local:  # a store shows no half object
        storage.remove_many([name for name in storage.names() if HALF.match(name)])
    return kept


def _find_pieces(
    config: DataConfig,
    missing: Sequence[ShardPlan],
    cut: Sequence[Clip],
    sources: Sources,
    progress: Progress,
) -> list[ShardPlan]:
    """Plans of decided shards, with the places of their clips: parts still there, or made anew."""
    storage = Storage(config.out)
    wanted = {piece.clip_id for plan in missing for piece in plan.pieces}
    plans = plan_all(config, cut, sources)
    there = finished_parts(storage, plans)
    useful = {
        plan.stem: there[plan.stem]
        for plan in plans
        if plan.stem in there and any(clip.clip_id in wanted for clip in plan.clips)
    }
    rows = {clip.clip_id: clip for found in read_rows(storage, useful).values() for clip in found}
    absent = [clip for clip in cut if clip.clip_id in wanted and clip.clip_id not in rows]
    made = encode_all(config, plan_all(config, absent, sources), sources, progress)
    rows |= {clip.clip_id: clip for clip in made}
    placed = []
    for plan in missing:
        for piece in plan.pieces:
            row = rows.get(piece.clip_id)
            if row is None or row.status != "kept" or row.members_sha256 != piece.members_sha256:
                what = row.reason if row is not None and row.reason else "it came out otherwise than before"
                raise DataError(
                    f"shard {plan.stem} cannot be made again as it was, for clip {piece.clip_id}: {what}. "
                    f"--force decides the data set anew"
                )
        placed.append(plan_shard(plan.stem, plan.split, [rows[p.clip_id] for p in plan.pieces]))
    return placed


def pack_all(config: DataConfig, plans: Sequence[ShardPlan], progress: Progress) -> None:
    """Build shards from their parts; what a killed worker left of one is removed."""
    storage = Storage(config.out)
    rates = Rates("pack", sum(len(plan.pieces) for plan in plans), "clips", progress)
    for _, item in stream(build_shard, plans, (_absolute(storage),), config.ray):
        if isinstance(item, tuple):
            rates.add(1, item[1])
    if storage.is_local:  # a store shows no half object
        halves = [name for name in storage.names(SHARDS_FOLDER) if HALF_SHARD.match(name)]
        storage.remove_many([f"{SHARDS_FOLDER}/{name}" for name in halves])
