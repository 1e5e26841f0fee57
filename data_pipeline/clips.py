"""Pure: from the facts of videos to clip spans, stable ids, and the parts that are encoded together.

Nothing here reads a file. The same videos and config give the same plan in whatever order they come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.config import CutConfig, DataConfig
from data_pipeline.encode import encoded_size
from data_pipeline.format import FORMAT_VERSION
from data_pipeline.manifest import Clip, Video
from data_pipeline.sources import Span

# A part is closed when its clips are that long together, or that many: seconds of work, so that a few
# videos keep all cores busy and little is lost with a worker. Each part opens its videos anew, which takes a
# second an hour of video, and from a store a download: so a video is cut into few parts, a remote one later.
PART_S, PART_CLIPS = 60.0, 256
PARTS_OF_A_VIDEO = 16
REMOTE_PARTS = 10
OVERSHOOT_S = 0.1  # a list's end may lie so far behind the video's: its clock was another


def stable_id(*parts: object) -> str:
    """20 hex digits from the parts' text, the same on every machine and run."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:20]


def video_id(name: str, content_sha256: str) -> str:
    """Of a file, by its name relative to its source and what it holds: not where it lies, nor when."""
    return stable_id("video", name, content_sha256)


def clip_id(video: str, start_ms: int, end_ms: int) -> str:
    """Of a span of a video. Encoder settings are left out on purpose: labels, splits and results that
    name a clip stay true when the same span is encoded again at another size."""
    return stable_id("clip", video, start_ms, end_ms)


def windows(duration_s: float, cut: CutConfig, slack_s: float = 1e-3) -> list[tuple[int, int]]:
    """(start, end) in milliseconds of each whole window; `slack_s` forgives a header's rounding."""
    spans: list[tuple[int, int]] = []
    while True:
        start_s = len(spans) * cut.stride_s
        if start_s + cut.length_s > duration_s + slack_s:
            return spans
        spans.append((round(start_s * 1000), round((start_s + cut.length_s) * 1000)))


def _regions(video: Video, span: Span, cut: CutConfig) -> Iterator[tuple[int, int, float]]:
    """(start, end, slack): stretches in milliseconds that clips are cut from, each on its own."""
    frame_s = 0.5 / video.average_fps if video.average_fps else 1e-3
    end_s = video.duration_s if span.end_s is None else min(span.end_s, video.duration_s)
    inner = [time for time in video.cuts_s or () if span.start_s < time < end_s]
    edges = [span.start_s, *(inner if cut.kind == "scenes" else ()), end_s]
    for begin, end in itertools.pairwise(edges):
        slack_s = frame_s if end == video.duration_s else 1e-3
        yield round(begin * 1000), round(end * 1000), slack_s


def _spans_of(video: Video, span: Span, cut: CutConfig) -> Iterator[tuple[int, int, str]]:
    """(start, end, reason): the clips of one span in milliseconds; a reason says why it is none."""
    if video.is_picture:  # all of it, whatever a list calls its end
        yield round(span.start_s * 1000), round((span.start_s + video.duration_s) * 1000), ""
        return
    if cut.kind == "spans":
        end_s = video.duration_s if span.end_s is None else span.end_s
        start_ms, end_ms = round(span.start_s * 1000), round(end_s * 1000)
        reason = ""
        if end_s - span.start_s < cut.length_s - 1e-3:
            reason = _too_short(end_s - span.start_s, cut)
        yield start_ms, end_ms, reason
        return
    longest_s = 0.0
    is_cut = False
    for start_ms, end_ms, slack_s in _regions(video, span, cut):
        length_s = (end_ms - start_ms) / 1000
        longest_s = max(longest_s, length_s)
        for a, b in windows(length_s, cut, slack_s):
            is_cut = True
            yield start_ms + a, start_ms + b, ""
    if not is_cut:
        end_s = video.duration_s if span.end_s is None else min(span.end_s, video.duration_s)
        yield round(span.start_s * 1000), max(0, round(end_s * 1000)), _too_short(longest_s, cut)


def _too_short(length_s: float, cut: CutConfig) -> str:
    what = "its longest scene has " if cut.kind == "scenes" else ""
    return f"too short: {what}{max(0.0, length_s):.2f} s, a clip is {cut.length_s:g} s"


def cut_video(video: Video, spans: Sequence[Span], config: DataConfig) -> list[Clip]:
    """The clips of a usable video; a span without one gives a single filtered clip, with the reason.

    A span that begins or ends behind the video's end is a failed clip, when a clip must be all of it.
    A still picture is one clip of one frame however videos are cut; a span that begins later fails.
    """
    width, height = encoded_size(video.width, video.height, config.encode.short_side, video.pixel_aspect)
    clips: dict[str, Clip] = {}
    rivals: list[tuple[Clip, Span]] = []
    for number, span in enumerate(spans):
        end_s = span.end_s or 0.0
        is_beyond = span.start_s >= video.duration_s or (
            config.cut.kind == "spans" and end_s > video.duration_s + OVERSHOOT_S
        )
        if video.is_picture:
            is_beyond = span.start_s > 0
        for start_ms, end_ms, reason in _spans_of(video, span, config.cut):
            # How long a picture is shown is the encoder's setting, of which no id knows.
            name = clip_id(video.video_id, start_ms, start_ms if video.is_picture else end_ms)
            if name in clips:  # two spans of a list that overlap
                if clips[name].label != span.label:
                    rivals.append((clips[name], span))
                continue
            clip = Clip(
                clip_id=name,
                video_id=video.video_id,
                uri=video.uri,
                start_s=start_ms / 1000,
                end_s=end_ms / 1000,
                status="kept",
                num_frames=config.num_frames((end_ms - start_ms) / 1000),
                fps=config.encode.fps,
                width=width,
                height=height,
                label=span.label,
                etag=video.etag,
                span=number,
                recording=stable_id("recording", span.group) if span.group else video.video_id,
            )
            if is_beyond:
                asked = f"{span.start_s:g} s" + (f" to {span.end_s:g} s" if span.end_s is not None else "")
                who = span.origin or "its span"
                ends = f"the video ends at {video.duration_s:.2f} s"
                words = f"{who} asks for {asked}; {'a picture has no times' if video.is_picture else ends}"
                clip = _set_aside(clip, "failed", words, "DataError")
            elif reason:
                clip = _set_aside(clip, "filtered", reason)
            clips[name] = clip
    for number, (first, span) in enumerate(rivals):
        words = f"{span.origin or 'another span'} asks for the same seconds with label {span.label!r}"
        row = dataclasses.replace(first, clip_id=stable_id("rival", first.clip_id, number), label=span.label)
        clips[row.clip_id] = _set_aside(row, "failed", f"{words}; {first.label!r} stands", "DataError")
    return list(clips.values())


def _set_aside(clip: Clip, status: str, reason: str, error_class: str = "") -> Clip:

    return dataclasses.replace(
        clip,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        error_class=error_class,
        num_frames=0,
        fps=0.0,
        width=0,
        height=0,
    )


def assign_splits(
    num_clips: Mapping[str, int], eval_fraction: float, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Train or eval for each recording, by a hash of its id: in a large set, a new one never moves another.

    num_clips: clips by recording, which is a video unless several show the same. known: recordings whose
    side is decided, by a list or by an earlier job.
    In a small set chance is bridled: a recording that would bring the eval split past one and a half times
    its share of the clips stays in train. With two or more and a fraction above 0, neither split is left
    empty.
    """
    known = {video: split for video, split in (known or {}).items() if video in num_clips}
    draws = {video: int(stable_id("split", video)[:13], 16) / 16**13 for video in num_clips}
    splits = dict.fromkeys(sorted(num_clips), "train") | known
    free = [video for video in sorted(splits, key=lambda video: draws[video]) if video not in known]
    total = sum(num_clips.values())
    room = 1.5 * eval_fraction * total - sum(num_clips[v] for v, split in known.items() if split == "eval")
    for video in free:
        if draws[video] < eval_fraction and num_clips[video] <= room:
            splits[video] = "eval"
            room -= num_clips[video]
    if eval_fraction > 0 and len(splits) > 1 and free:
        if "eval" not in splits.values():
            fair = eval_fraction * total
            splits[min(free, key=lambda video: (max(fair, num_clips[video]), draws[video]))] = "eval"
        if "train" not in splits.values():
            splits[max(free, key=lambda video: draws[video])] = "train"
    return splits


def in_shard_order(clips: Iterable[Clip]) -> list[Clip]:
    """Videos shuffled by a hash of their id, their clips together and in time order."""
    listed = list(clips)
    drawn = {name: stable_id("order", name) for name in {clip.video_id for clip in listed}}
    return sorted(listed, key=lambda clip: (drawn[clip.video_id], clip.start_s, clip.end_s, clip.clip_id))


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One idempotent task: these clips, decoded and encoded in this order.

    stem: made from whatever decides the part's bytes, so that a part that is there is the one wanted.
    """

    stem: str
    clips: tuple[Clip, ...]


def plan_parts(
    clips: Iterable[Clip], videos: Mapping[str, Video], config: DataConfig, versions: Mapping[str, str]
) -> list[PartPlan]:
    """Pack the clips to encode into parts, whole videos where they are not long.

    Tasks then read a video in sequence. What shards hold does not depend on it.
    """
    shape = stable_id(FORMAT_VERSION, config.encode_fingerprint(), sorted(versions.items()))
    bundles: list[list[Clip]] = []
    length_s, limit_s, name = 0.0, 0.0, ""
    for clip in in_shard_order(clips):
        if clip.video_id == name:
            video = videos[name]
            limit_s = PART_S * (REMOTE_PARTS if "://" in video.uri else 1)
            limit_s = max(limit_s, video.duration_s / PARTS_OF_A_VIDEO)
        else:
            name, limit_s = clip.video_id, PART_S
        if not bundles or length_s >= limit_s or len(bundles[-1]) >= PART_CLIPS:
            bundles.append([])
            length_s = 0.0
        bundles[-1].append(clip)
        length_s += clip.end_s - clip.start_s
    plans = []
    for bundle in bundles:
        parts = [
            f"{clip.clip_id} {clip.label} {clip.span} {videos[clip.video_id].sidecars_sha256}"
            for clip in bundle
        ]
        plans.append(PartPlan(f"part-{stable_id(shape, *parts)}", tuple(bundle)))
    return plans
