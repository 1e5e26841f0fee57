"""previews.parquet: what a few of the clips look like, kept and left out, for the data card.

They are cut from the parts before these are removed; only the clips that are shown are read.
"""

from __future__ import annotations

import heapq
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.clips import stable_id
from data_pipeline.decode import open_video
from data_pipeline.errors import DataError
from data_pipeline.format import VIDEO
from data_pipeline.manifest import Clip, from_parquet, to_parquet
from data_pipeline.parts import part_tar
from data_pipeline.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEWS_FILE = "previews.parquet"
NUM_KEPT = 24
NUM_OF_RULE = 12
HEIGHT = 72
WIDEST = 4  # a frame's width by its height; of a wider one the middle is shown
GAP = 3  # pixels of grey between two frames
MOMENTS = (1, 3, 5)  # sixths of the clip
JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Preview:
    """Three frames of a clip side by side, or its only one, as one JPEG.

    rule: that left the clip out, empty for a kept one. width, height: of the JPEG in pixels.
    """

    clip_id: str
    rule: str
    width: int
    height: int
    jpeg: bytes


def rule_of(clip: Clip) -> str:
    """The rule that left a clip out: its reason up to the colon; empty for clips that are not filtered."""
    return clip.reason.split(":", 1)[0] if clip.status == "filtered" else ""


def publish_previews(storage: Storage, rows: Sequence[Clip], clips: Sequence[Clip]) -> None:
    """Write previews of some of the rows, chosen by a hash of their ids, beside those that are there already.

    rows: clips as their parts have them, shard being the part. clips: the same with their final verdict, and
    any that stood before: a preview whose clip has another verdict by now is dropped.
    Raises: DataError when a part is missing or damaged.
    """
    if not rows:
        return
    rules = {clip.clip_id: rule_of(clip) for clip in clips if clip.status != "failed"}
    before = [p for p in read_previews(storage) if rules.get(p.clip_id) == p.rule]
    chosen = _choose(rows, rules, before)
    made = [_preview(storage, row, rules[row.clip_id]) for row in chosen]
    previews = sorted([*before, *made], key=lambda preview: (preview.rule, _draw(preview.clip_id)))
    storage.publish(PREVIEWS_FILE, to_parquet(previews, Preview))


def read_previews(storage: Storage) -> list[Preview]:
    """The previews of a data set; none when it has no such file, or one that cannot be read."""
    if not storage.exists(PREVIEWS_FILE):
        return []
    try:
        return from_parquet(storage.read(PREVIEWS_FILE), Preview)[0]
    except DataError:  # cut short, or of another release: pictures are no part of the data
        return []


def _draw(clip_id: str) -> str:
    return stable_id("preview", clip_id)


def _choose(rows: Iterable[Clip], rules: dict[str, str], before: Sequence[Preview]) -> list[Clip]:
    """Of each verdict as many rows as there is room for, the first by draw; in the order they are read."""
    filled = Counter(preview.rule for preview in before)
    shown = {preview.clip_id for preview in before}
    candidates: dict[str, list[Clip]] = {}
    for row in rows:
        if row.size_bytes and row.clip_id in rules and row.clip_id not in shown:
            candidates.setdefault(rules[row.clip_id], []).append(row)
    chosen: list[Clip] = []
    for rule, found in candidates.items():
        room = (NUM_OF_RULE if rule else NUM_KEPT) - filled[rule]
        chosen += heapq.nsmallest(room, found, key=lambda row: _draw(row.clip_id))
    return sorted(chosen, key=lambda row: (row.shard, row.offset or 0))


def _preview(storage: Storage, row: Clip, rule: str) -> Preview:
    frames = [_small(frame) for frame in _shown_frames(_members(storage, row), row.num_frames)]
    strip = _side_by_side(frames)
    sink = io.BytesIO()
    strip.save(sink, "JPEG", quality=JPEG_QUALITY)
    return Preview(row.clip_id, rule, strip.width, strip.height, sink.getvalue())


def _members(storage: Storage, row: Clip) -> dict[str, bytes]:
    """A clip's members, by suffix, from its stretch of the part's tar."""
    data = storage.read(part_tar(row.shard), row.offset, row.size_bytes)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            files = {info.name.split(".", 1)[1]: tar.extractfile(info) for info in tar}
            return {suffix: file.read() for suffix, file in files.items() if file is not None}
    except tarfile.TarError as error:
        address = storage.address(part_tar(row.shard))
        raise DataError(
            f"{address} is damaged at {row.offset}: {error}; remove it, and the same command makes it again"
        ) from error


def _shown_frames(members: dict[str, bytes], num_frames: int) -> list[Image]:
    """Of a kept clip its frames at three moments, or the one that it has; of one that was left out the thirds
    of its picture, or the whole where the clip has one frame."""
    from PIL import Image

    if VIDEO in members:
        with open_video(members[VIDEO], "pyav") as video:  # the same picture wherever it is drawn
            return [Image.fromarray(frame) for frame in video.frames(_moments(len(video.timestamps_s)))]
    pictures = sorted(suffix for suffix in members if suffix.endswith(".jpg"))
    if len(pictures) != 1 or pictures[0][0].isdigit():
        return [Image.open(io.BytesIO(members[pictures[k]])).convert("RGB") for k in _moments(len(pictures))]
    strip = Image.open(io.BytesIO(members[pictures[0]])).convert("RGB")
    if num_frames == 1:
        return [strip]
    width = strip.width // len(MOMENTS)
    return [strip.crop((k * width, 0, (k + 1) * width, strip.height)) for k in range(len(MOMENTS))]


def _moments(num_frames: int) -> list[int]:
    return [num_frames * moment // 6 for moment in MOMENTS] if num_frames > 1 else [0]


def _small(frame: Image) -> Image:
    """The frame at the height of a strip; only the middle of one that is very wide."""
    from PIL.Image import Resampling

    if frame.width > WIDEST * frame.height:
        left = (frame.width - WIDEST * frame.height) // 2
        frame = frame.crop((left, 0, left + WIDEST * frame.height, frame.height))
    return frame.resize((max(1, round(frame.width * HEIGHT / frame.height)), HEIGHT), Resampling.LANCZOS)


def _side_by_side(frames: Sequence[Image]) -> Image:
    from PIL import Image

    width = sum(frame.width + GAP for frame in frames) - GAP
    strip = Image.new("RGB", (width, HEIGHT), (128, 128, 128))
    left = 0
    for frame in frames:
        strip.paste(frame, (left, 0))
        left += frame.width + GAP
    return strip
