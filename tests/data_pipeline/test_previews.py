"""Which clips are shown, and that what is shown is theirs."""

from __future__ import annotations

import dataclasses
import io
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.encode import encode_frames, encode_jpegs
from data_pipeline.manifest import Clip, from_parquet
from data_pipeline.parts import part_tar, place
from data_pipeline.previews import PREVIEWS_FILE, Preview, publish_previews
from data_pipeline.shards import ShardFile
from data_pipeline.storage import Storage

COLOURS = ((220, 30, 40), (40, 200, 50), (30, 60, 210))  # of the three frames that are to be shown


def colours_over_time(num_frames: int, width: int, height: int) -> np.ndarray:
    """Frames (n, H, W, 3): a third of the clip in each colour."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for k in range(num_frames):
        frames[k] = COLOURS[3 * k // num_frames]
    return frames


def as_video(width: int = 64, height: int = 48) -> dict[str, bytes]:
    frames = colours_over_time(12, width, height)
    return {
        "mp4": encode_frames([frames], width, height, 8.0, gop=4, crf=10, preset="veryfast"),
        "json": b"{}",
    }


def as_pictures(width: int = 64, height: int = 48, num_frames: int = 12) -> dict[str, bytes]:
    files = encode_jpegs(colours_over_time(num_frames, width, height), 95)
    return {f"{k:04d}.jpg": data for k, data in enumerate(files)} | {"json": b"{}"}


def as_left_out(width: int = 64, height: int = 48) -> dict[str, bytes]:
    strip = np.concatenate(list(colours_over_time(3, width, height)), axis=1)
    return {"preview.jpg": encode_jpegs(strip[None], 95)[0]}


def clip(number: int, **changes: Any) -> Clip:
    name = f"{number:020x}"
    return dataclasses.replace(Clip(name, "v" * 20, "/in/a.mp4", number, number + 1.0, "kept"), **changes)


def write_part(storage: Storage, stem: str, clips: Sequence[tuple[Clip, dict[str, bytes]]]) -> list[Clip]:
    """A part's tar, and its rows as the encoding task leaves them."""
    path = storage.local_path(part_tar(stem))
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardFile(path) as tar:
        for row, members in clips:
            if members:
                tar.add(row.clip_id, members)
        return place(stem, [row for row, _ in clips], tar.finish())


def read(storage: Storage) -> list[Preview]:
    return from_parquet(storage.read(PREVIEWS_FILE), Preview)[0]


class CountingStorage(Storage):
    """Remembers which parts were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[int | None, int | None]] = []

    def read(self, name: str, start: int | None = None, size: int | None = None) -> bytes:
        if name.endswith(".tar"):
            self.reads.append((start, size))
        return super().read(name, start, size)


@pytest.mark.parametrize(
    "members", [as_video(), as_pictures(), as_left_out()], ids=["mp4", "jpeg", "left out"]
)
def test_a_preview_is_three_frames_of_the_clip_in_order(tmp_path: Path, members: dict[str, bytes]) -> None:
    from PIL import Image

    storage = Storage(tmp_path)
    rows = write_part(storage, "part-a", [(clip(0), as_video(48, 64)), (clip(1), members)])
    publish_previews(storage, rows, rows)
    found = next(preview for preview in read(storage) if preview.clip_id == clip(1).clip_id)
    with Image.open(io.BytesIO(found.jpeg)) as image:
        assert image.format == "JPEG"
        assert (image.width, image.height) == (found.width, found.height) == (3 * 96 + 2 * 3, 72)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    thirds = [pixels[36, 99 * k + 48] for k in range(3)]
    assert np.abs(np.array(thirds) - COLOURS).max() < 24


@pytest.mark.parametrize(("width", "height"), [(48, 640), (640, 48), (2, 2), (64, 64)])
def test_no_shape_of_picture_makes_a_strip_that_cannot_be_shown(
    tmp_path: Path, width: int, height: int
) -> None:
    storage = Storage(tmp_path)
    rows = write_part(storage, "part-a", [(clip(0), as_pictures(width, height))])
    publish_previews(storage, rows, rows)
    (found,) = read(storage)
    assert found.height == 72
    assert 3 <= found.width <= 3 * 4 * 72 + 6


@pytest.mark.parametrize("num_frames", [2, 3])
def test_a_clip_of_fewer_frames_is_shown_all_the_same(tmp_path: Path, num_frames: int) -> None:
    storage = Storage(tmp_path)
    rows = write_part(storage, "part-a", [(clip(0), as_pictures(num_frames=num_frames))])
    publish_previews(storage, rows, rows)
    assert read(storage)[0].width == 3 * 96 + 6


def test_a_clip_of_one_frame_is_shown_as_that_frame(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    film = encode_frames([colours_over_time(1, 64, 48)], 64, 48, 8.0, gop=4, crf=10, preset="veryfast")
    left_out = clip(2, num_frames=1, status="filtered", reason="black: so")
    made = [
        (clip(0, num_frames=1), as_pictures(num_frames=1)),
        (clip(1, num_frames=1), {"mp4": film}),
        (left_out, {"preview.jpg": encode_jpegs(colours_over_time(1, 64, 48), 95)[0]}),
    ]
    rows = write_part(storage, "part-a", made)
    publish_previews(storage, rows, rows)
    assert [(found.width, found.height) for found in read(storage)] == [(96, 72)] * 3


def many(storage: Storage) -> tuple[list[Clip], list[Clip]]:
    """60 kept, 30 black, 5 frozen, 40 near-duplicates, 3 too short and 2 failed ones: rows and verdicts."""
    small = as_pictures(16, 12, 3)
    dark = as_left_out(16, 12)
    made: list[tuple[Clip, dict[str, bytes]]] = [(clip(k), small) for k in range(100)]
    made += [(clip(k, status="filtered", reason="black: 60 %: so"), dark) for k in range(100, 130)]
    made += [(clip(k, status="filtered", reason="frozen: 99 %"), dark) for k in range(130, 135)]
    made += [
        (clip(k, status="failed", reason="damaged", error_class="DataError"), {}) for k in range(138, 140)
    ]
    rows = write_part(storage, "part-a", made[:70]) + write_part(storage, "part-b", made[70:])
    rows += [clip(k, status="filtered", reason="too short: 0.5 s") for k in range(135, 138)]
    verdicts = [
        dataclasses.replace(row, status="filtered", reason="duplicate: it looks like /in/b.mp4 at 3 s")
        if row.status == "kept" and int(row.clip_id, 16) >= 60
        else row
        for row in rows
    ]
    return rows, [dataclasses.replace(row, shard="", offset=None, size_bytes=None) for row in verdicts]


def test_limits_hold_and_only_what_is_shown_is_read(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    rows, verdicts = many(storage)
    publish_previews(storage, rows, verdicts)
    found = read(storage)
    assert Counter(preview.rule for preview in found) == {"": 24, "black": 12, "frozen": 5, "duplicate": 12}
    rules = {v.clip_id: v.reason.split(":")[0] for v in verdicts}
    assert all(rules[preview.clip_id] == preview.rule for preview in found)
    sizes = {(row.offset, row.size_bytes) for row in rows}
    assert len(storage.reads) == len(found)
    assert set(storage.reads) <= sizes


def test_another_order_of_rows_gives_the_same_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows, verdicts = many(storage)
    publish_previews(storage, rows, verdicts)
    first = storage.read(PREVIEWS_FILE)
    storage.remove(PREVIEWS_FILE)
    random.Random(1).shuffle(rows)
    random.Random(2).shuffle(verdicts)
    publish_previews(storage, rows, verdicts)
    assert storage.read(PREVIEWS_FILE) == first


def test_the_choice_is_spread_over_the_whole_set(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows, verdicts = many(storage)
    publish_previews(storage, rows, verdicts)
    numbers = [int(preview.clip_id, 16) for preview in read(storage) if not preview.rule]
    assert min(numbers) < 20
    assert max(numbers) >= 40


def test_a_redrive_adds_to_what_is_there_up_to_the_limits(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    first = write_part(storage, "part-a", [(clip(k), as_pictures(16, 12, 3)) for k in range(20)])
    publish_previews(storage, first, first)
    before = read(storage)
    storage.reads.clear()
    second = write_part(storage, "part-b", [(clip(k), as_pictures(16, 12, 3)) for k in range(20, 40)])
    publish_previews(storage, second, [*first, *second])
    after = read(storage)
    assert len(before) == 20
    assert len(after) == 24
    assert len(storage.reads) == 4
    assert set(before) < set(after)


def test_pictures_of_a_replaced_data_set_do_not_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    old = write_part(storage, "part-a", [(clip(k), as_pictures(16, 12, 3)) for k in range(8)])
    publish_previews(storage, old, old)
    new = write_part(storage, "part-b", [(clip(k), as_pictures(16, 12, 3)) for k in range(4, 12)])
    verdicts = [
        dataclasses.replace(row, status="filtered", reason="duplicate: it is")
        if row.clip_id == clip(4).clip_id
        else row
        for row in new
    ]
    publish_previews(storage, new, verdicts)
    found = {preview.clip_id: preview.rule for preview in read(storage)}
    assert found == {row.clip_id: "duplicate" if row is new[0] else "" for row in new}


def test_no_rows_nothing_is_read_or_written(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path / "absent")
    publish_previews(storage, [], [clip(0)])
    assert not (tmp_path / "absent").exists()
    assert not storage.reads


def test_rows_without_anything_to_show_give_an_empty_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = [clip(0, status="failed", reason="x"), clip(1, status="filtered", reason="too short: 0 s")]
    publish_previews(storage, rows, rows)
    assert read(storage) == []


def test_a_file_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.publish(PREVIEWS_FILE, b"cut sho")
    rows = write_part(storage, "part-a", [(clip(0), as_left_out())])
    publish_previews(storage, rows, rows)
    assert len(read(storage)) == 1
