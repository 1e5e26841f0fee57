"""A data card's numbers, counted from the rows of videos and clips: linear in them, whatever their order."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from data_pipeline.card.charts import Doubles, linear, logarithmic
from data_pipeline.card.facts import (
    DARK,
    STILL,
    Card,
    Distribution,
    Duplicates,
    Label,
    Labels,
    Reason,
    Rule,
    Shown,
    Side,
    Totals,
)
from data_pipeline.card.groups import (
    MAX_ROWS,
    MAX_SOURCES,
    STATUS,
    Columns,
    PerVideo,
    clip_sizes,
    columns_of,
    formats,
    milliseconds,
    root_of,
    source_names,
)
from data_pipeline.config import DataConfig
from data_pipeline.format import SPLITS, DatasetInfo
from data_pipeline.manifest import Clip, Video
from data_pipeline.previews import Preview, rule_of

MAX_LABELS = 30
MAX_REASONS = 20  # kinds of failure
MAX_EXAMPLES = 20  # of failures


def count_all(
    config: DataConfig,
    info: DatasetInfo,
    videos: Sequence[Video],
    clips: Sequence[Clip],
    previews: Sequence[Preview],
) -> Card:
    """The card's numbers."""
    usable = [video for video in videos if video.status == "usable"]
    number = {video.video_id: k for k, video in enumerate(usable)}
    is_picture = np.fromiter((video.is_picture for video in usable), bool, len(usable))
    columns = columns_of(clips, number, is_picture)
    status = Counter(video.status for video in videos)
    kept = [clip for clip in clips if clip.status == "kept"]
    per_video = PerVideo.of(usable, columns, is_picture)
    roots = {video.video_id: root_of(video) for video in usable}
    failed: list[Video | Clip] = [video for video in videos if video.status == "failed"]
    failed += [clip for clip in clips if clip.status == "failed"]
    failures, num_left = _reasons(failed, MAX_REASONS)
    passed, _ = _reasons([video for video in videos if video.status == "ignored"], MAX_ROWS)
    lengths_ms = columns.length_ms[columns.is_kept & ~columns.is_picture]
    return Card(
        config=config,
        info=info,
        num_videos={name: status[name] for name in ("usable", "failed", "ignored")},
        num_clips={name: int(np.count_nonzero(columns.status == code)) for name, code in STATUS.items()},
        num_pictures=int(is_picture.sum()),
        num_kept_pictures=int(np.count_nonzero(is_picture & (per_video.num_kept > 0))),
        source_s=int(per_video.length_ms.sum()) / 1000,
        source_bytes=sum(video.size_bytes for video in usable),
        kept_s=int(columns.length_ms[columns.is_kept].sum()) / 1000,
        num_cropped=sum(bool(clip.crop) for clip in kept),
        length_s=(int(lengths_ms.min()) / 1000, int(lengths_ms.max()) / 1000)
        if len(lengths_ms)
        else (0.0, 0.0),
        sides=_sides(kept, info),
        roots=tuple(sorted(set(roots.values()))),
        sources=per_video.group(source_names(usable, roots), MAX_SOURCES),
        formats=(*formats(usable, per_video), ("Size of the kept clips", clip_sizes(kept))),
        labels=_labels(kept),
        distributions=_distributions(config, columns, per_video),
        rules=_rules(clips, number),
        duplicates=_duplicates(clips),
        failures=failures,
        num_failures_left=num_left,
        passed_over=passed,
        totals=_totals(config, usable, kept, columns, per_video),
        shown=_shown(previews, clips, usable, number),
    )


def _sides(kept: Sequence[Clip], info: DatasetInfo) -> tuple[Side, ...]:
    sides = []
    for split in SPLITS:
        clips = [clip for clip in kept if clip.split == split]
        lengths_ms = milliseconds((clip.end_s - clip.start_s for clip in clips), len(clips))
        shards = info.shards_of(split)
        sides.append(
            Side(
                split,
                len(clips),
                len({clip.video_id for clip in clips}),
                int(lengths_ms.sum()) / 1000,
                len(shards),
                sum(shard.tar_bytes for shard in shards),
            )
        )
    return tuple(sides)


def _labels(kept: Sequence[Clip]) -> Labels:
    counts = {split: Counter(clip.label for clip in kept if clip.split == split) for split in SPLITS}
    both = counts["train"] + counts["eval"]
    num_unlabelled = both.pop(None, 0)
    most = heapq.nsmallest(MAX_LABELS, both.items(), key=lambda item: (-item[1], item[0] or ""))
    return Labels(
        most=tuple(Label(name or "", counts["train"][name], counts["eval"][name]) for name, _ in most),
        num=len(both),
        num_unlabelled=num_unlabelled,
        num_eval_only=sum(name is not None and name not in counts["train"] for name in counts["eval"]),
    )


def _distributions(config: DataConfig, columns: Columns, per_video: PerVideo) -> tuple[Distribution, ...]:
    found = []
    is_kept = columns.is_kept
    lengths = columns.length_ms[is_kept & ~columns.is_picture] / 1000
    if len(lengths) and lengths.min() < lengths.max():
        chart = linear("Length of the clips", "seconds", "clips", lengths, lengths[:0])
        found.append(Distribution(chart, len(lengths), _quantiles(lengths), None))
    durations = per_video.length_ms[~per_video.is_picture] / 1000
    used = per_video.num_kept[~per_video.is_picture] > 0
    if len(durations):
        chart = logarithmic(
            "Length of the videos", "seconds, logarithmic", "videos", durations[used], durations[~used]
        )
        found.append(Distribution(chart, len(durations), _quantiles(durations), None))
    filters = config.filters
    axes = {
        "motion": "mean change of brightness in a second, 1 is black to white",
        "brightness": "mean brightness, 1 is white",
        "black": "share of frames that are black",
        "frozen": "share of frames that equal the one before",
    }
    limits = {"motion": filters.min_motion, "black": filters.max_black, "frozen": filters.max_frozen}
    settings = {"motion": "filters.min_motion", "black": "filters.max_black", "frozen": "filters.max_frozen"}
    for name, axis in axes.items():
        scores = columns.scores[name]
        is_scored = ~np.isnan(scores)
        scored, limit = scores[is_scored], limits.get(name)
        chart = linear(
            name.capitalize(),
            axis,
            "clips",
            scores[is_scored & is_kept],
            scores[is_scored & ~is_kept],
            high=None if name == "motion" else 1.0,
            is_upper_end_in=name != "motion",
            threshold=None if limit is None else (limit, f"{settings[name].split('.')[1]} {limit:g}"),
        )
        past = None
        if limit is not None:
            past = int(np.count_nonzero(scored < limit if name == "motion" else scored > limit))
        quantiles = _quantiles(scores[is_scored & is_kept])
        found.append(Distribution(chart, len(scored), quantiles, past, settings.get(name, ""), limit))
    return tuple(found)


def _quantiles(values: Doubles) -> tuple[float, float, float] | None:
    """What 5 %, half and 95 % of the values do not pass."""
    if not len(values):
        return None
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), method="inverted_cdf").tolist()
    return low, middle, high


def _place(row: Video | Clip) -> tuple[str, float, float, str]:
    if isinstance(row, Clip):
        return row.uri, row.start_s, row.end_s, row.clip_id
    return row.uri, -1.0, -1.0, row.video_id


def _rules(clips: Sequence[Clip], number: Mapping[str, int]) -> tuple[Rule, ...]:
    """Of the rules that left most clips out."""
    by_rule: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.status == "filtered":
            by_rule[rule_of(clip)].append(clip)
    largest = heapq.nsmallest(MAX_ROWS, by_rule.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        Rule(
            name=name,
            num_clips=len(found),
            num_videos=len({clip.video_id for clip in found}),
            length_s=int(milliseconds((c.end_s - c.start_s for c in found), len(found)).sum()) / 1000,
            example=min(found, key=_place),
        )
        for name, found in largest
    )


def _reasons(rows: Iterable[Video | Clip], limit: int) -> tuple[tuple[Reason, ...], int]:
    """The most frequent reasons, and how many rows have others. Words that differ in numbers are one."""
    by_words: dict[tuple[str, str], list[Video | Clip]] = defaultdict(list)
    for row in rows:
        by_words[row.error_class, re.sub(r"\d+(\.\d+)?", "0", row.reason)].append(row)
    largest = heapq.nsmallest(limit, by_words.items(), key=lambda item: (-len(item[1]), item[0]))
    examples_each = max(1, MAX_EXAMPLES // max(1, len(largest)))
    reasons = []
    for (error_class, _), found in largest:
        examples = heapq.nsmallest(examples_each, found, key=_place)
        num_clips = sum(isinstance(row, Clip) for row in found)
        words = examples[0].reason
        reasons.append(Reason(error_class, words, len(found) - num_clips, num_clips, tuple(examples)))
    num_all = sum(map(len, by_words.values()))
    return tuple(reasons), num_all - sum(reason.num_videos + reason.num_clips for reason in reasons)


def _duplicates(clips: Sequence[Clip]) -> Duplicates:
    groups = Counter(clip.duplicate_of for clip in clips if clip.duplicate_of)
    if not groups:
        return Duplicates(0, 0, None)
    name, num = min(groups.items(), key=lambda item: (-item[1], item[0]))
    twin = next((clip for clip in clips if clip.clip_id == name), None)
    return Duplicates(sum(groups.values()), len(groups), None if twin is None else (twin, num))


def _totals(
    config: DataConfig,
    usable: Sequence[Video],
    kept: Sequence[Clip],
    columns: Columns,
    per_video: PerVideo,
) -> Totals:
    def where(test: Callable[[Video], bool]) -> tuple[int, float]:
        which = np.fromiter((test(video) for video in usable), bool, len(usable))
        return int(which.sum()), int(per_video.kept_ms[which].sum()) / 1000

    largest = min(zip((-per_video.kept_ms).tolist(), (v.name for v in usable), strict=True), default=(0, ""))
    hashes: Counter[str] = Counter()
    sides: dict[str, set[str]] = defaultdict(set)
    if config.filters.max_distance is None:  # else no two that are kept are alike
        hashes = Counter(clip.phash for clip in kept if clip.phash)
        for clip in kept:
            if hashes[clip.phash] > 1:
                sides[clip.phash].add(clip.split)
    is_kept, scores = columns.is_kept, columns.scores
    with np.errstate(invalid="ignore"):
        num_still = int(np.count_nonzero(is_kept & (scores["motion"] < STILL)))
        num_dark = int(np.count_nonzero(is_kept & (scores["brightness"] < DARK)))
    short_side, fps = config.encode.short_side, config.encode.fps
    return Totals(
        largest_video=(largest[1], -largest[0] / 1000),
        upscaled=where(
            lambda video: 0 < min(video.width * video.pixel_aspect, video.height) < 0.99 * short_side
        ),
        slow=where(lambda video: 0 < video.average_fps < 0.99 * fps),
        num_vfr=sum(video.is_vfr is True for video in usable),
        num_unknown_rate=sum(video.is_vfr is None for video in usable),
        num_without_clips=int(np.count_nonzero(per_video.num_kept == 0)),
        num_state_names=len({video.state_names for video in usable}),
        num_action_names=len({video.action_names for video in usable}),
        num_same_hash=sum(count - 1 for count in hashes.values()),
        num_same_hash_across=sum(hashes[text] for text, found in sides.items() if len(found) > 1),
        num_still=num_still,
        num_dark=num_dark,
    )


def _shown(
    previews: Sequence[Preview], clips: Sequence[Clip], usable: Sequence[Video], number: Mapping[str, int]
) -> tuple[Shown, ...]:
    """The previews whose clips are known, with the verdict they have now, in the order they come."""
    wanted = {preview.clip_id for preview in previews}
    found = {clip.clip_id: clip for clip in clips if clip.clip_id in wanted}
    shown = []
    for preview in previews:
        clip = found.get(preview.clip_id)
        if clip is not None and clip.status != "failed":
            known = number.get(clip.video_id)
            name = clip.uri if known is None else usable[known].name
            shown.append(Shown(preview, clip, name))
    return tuple(shown)
