"""Pictures in lists, and beside videos that have sidecars: what is theirs, and what is asked in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.encode import encoded_size
from data_pipeline.errors import DataError
from data_pipeline.index import build_index
from tests.data_pipeline.films import noise, quiet, write_video
from tests.data_pipeline.photos import by_name, draw, stored, with_orientation, write

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")


def write_still_list(folder: Path) -> Path:
    write(folder / "cat.jpg", draw(1))
    write(folder / "dog.png", stored(draw(2), 6), exif=with_orientation(6))
    write_video(folder / "film.mp4", noise(32))
    rows = [
        {"uri": "cat.jpg", "label": "cat", "split": "eval"},
        {"uri": "dog.png", "label": "dog", "end_s": "10"},
        {"uri": "film.mp4", "label": "film"},
    ]
    return list_of(folder, rows)


def list_of(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    keys = ("uri", "start_s", "end_s", "label", "actions", "split")
    lines = [",".join(keys), *(",".join(row.get(key, "") for key in keys) for row in rows)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


@pytest.mark.parametrize("kind", ["windows", "spans"])
def test_a_list_gives_pictures_labels_and_sides(tmp_path: Path, make_config: MakeConfig, kind: str) -> None:
    path = write_still_list(tmp_path / "listed")
    outcome = shard(make_config(path, cut={"kind": kind, "length_s": 1.0}, pictures=True), quiet)
    found = by_name(outcome)
    assert {name: (clip.label, clip.status) for name, clip in found.items()} == {
        "cat": ("cat", "kept"),
        "dog": ("dog", "kept"),
    }
    assert found["cat"].split == "eval"
    assert (found["dog"].width, found["dog"].height) == encoded_size(96, 64, 32)
    assert not outcome.dead_letters


def test_a_line_that_asks_too_much_of_a_picture_is_said(tmp_path: Path, make_config: MakeConfig) -> None:
    path = write_still_list(tmp_path / "listed")
    np.savez(
        tmp_path / "listed" / "dog.npz", t=np.arange(3.0), state=np.zeros((3, 2)), state_names=["x", "y"]
    )
    rows = [
        {"uri": "cat.jpg", "label": "cat"},
        {"uri": "cat.jpg", "label": "kitten", "end_s": "5"},
        {"uri": "cat.jpg", "start_s": "3", "end_s": "5"},
        {"uri": "dog.png", "actions": "dog.npz"},
        {"uri": "dog.png", "label": "dog"},
    ]
    list_of(path.parent, rows)
    outcome = shard(make_config(path, pictures=True, max_failed_fraction=1.0), quiet)
    assert Counter((clip.label, clip.status) for clip in outcome.clips) == {
        ("kitten", "kept"): 1,  # the earlier end comes first, as with videos
        ("cat", "failed"): 1,
        (None, "failed"): 1,
        ("dog", "kept"): 1,
    }
    said = " ".join(letter.reason for letter in outcome.dead_letters)
    assert "list.csv line 4 asks for 3 s to 5 s; a picture has no times" in said
    assert "dog.png is a picture, which has no actions" in said
    assert "asks for the same seconds with label 'cat'; 'kitten' stands" in said


def test_without_the_key_a_listed_picture_is_refused_with_the_remedy(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    path = write_still_list(tmp_path / "listed")
    with pytest.raises(DataError, match=r"JPEG picture, not a video; `pictures: true` takes pictures"):
        shard(make_config(path), quiet)
    outcome = shard(make_config(path, pictures=True), quiet)  # what was noted of them then does not stand
    assert len(by_name(outcome)) == 2
    (path.parent / "film.mp4").unlink()
    with pytest.raises(
        DataError, match=r"no video is in .*`pictures: true` takes the 2 still pictures there"
    ):
        build_index(make_config(path.parent, "other"), quiet)


def test_sidecars_stay_with_their_videos(tmp_path: Path, make_config: MakeConfig) -> None:
    """Thumbnails beside the cameras of an episode neither take its table nor make it a collection's."""
    folder = tmp_path / "episode"
    table = {"t": np.arange(3.0), "state": np.zeros((3, 2), np.float32)}
    write_video(folder / "film.mp4", noise(32))
    np.savez(folder / "film.npz", **table, state_names=["x", "y"])
    for number in range(20):
        write(folder / f"thumb-{number}.png", draw(number, 32, 32))
    write(folder / "film.jpg", draw(99))
    outcome = shard(make_config(folder, pictures=True, max_failed_fraction=0.0), quiet)
    names: dict[bool, set[tuple[str, ...]]] = {True: set(), False: set()}
    for video in outcome.videos:
        if video.status == "usable":
            names[video.is_picture].add(video.state_names)
    assert names == {True: {()}, False: {("x", "y")}}
    assert len(by_name(outcome)) == 21
