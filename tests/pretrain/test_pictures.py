"""Pictures: what is shaded is what is hidden, colours follow the features."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import CheckpointError, DataError
from pretrain import pictures, sheets
from pretrain.config import RunConfig

CONFIG = RunConfig.model_validate(
    {
        "name": "pictures",
        "data": {"shards": "nowhere", "frames": 8, "fps": 8.0, "size": 32},
        "model": {"encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 3, "patch": 8}},
    }
)


def _clips(count: int = 2) -> list[np.ndarray]:
    return [np.random.default_rng(k).integers(0, 255, (8, 32, 32, 3), np.uint8) for k in range(count)]


def test_hidden_tokens_are_shaded_and_clear_ones_are_untouched() -> None:
    frame = np.full((32, 32, 3), 200, np.uint8)
    hidden = np.zeros((4, 4), bool)
    hidden[1, 2] = True
    shown = pictures.shade(frame, hidden, np.array([61, 133, 198]))
    assert (shown[8:16, 16:24] != 200).all()
    shown[8:16, 16:24] = 200
    assert (shown == 200).all()


def test_shading_covers_the_frame_when_tokens_do_not_divide_it() -> None:
    shown = pictures.shade(
        np.zeros((112, 112, 3), np.uint8), np.ones((14, 14), bool), np.array([255, 255, 255])
    )
    assert (shown > 0).all()


def test_a_mask_sheet_has_a_row_a_clip_and_is_the_same_twice(tmp_path: Path) -> None:
    first = pictures.draw_masks(_clips(), CONFIG, 0, tmp_path)
    with Image.open(first.path) as sheet:
        assert sheet.size == (6 * 112 + 5 * 6, 2 * 112 + 6)
        assert sheet.mode == "RGBA"
    before = first.path.read_bytes()
    pictures.draw_masks(_clips(), CONFIG, 0, tmp_path)
    assert first.path.read_bytes() == before
    assert "8 blocks of 15%" in first.caption


def test_sheets_show_different_videos_and_fill_up_when_there_are_few() -> None:
    def reader(videos: str) -> Any:
        class Reader:
            def __len__(self) -> int:
                return len(videos)

            def meta(self, number: int) -> Any:
                return SimpleNamespace(video_id=videos[number])

        return Reader()

    videos = "a" * 20 + "b" * 3 + "c" * 10 + "d"
    assert len({videos[k] for k in pictures.of_different_videos(reader(videos), 4)}) == 4
    assert pictures.of_different_videos(reader("aab"), 4) == [0, 1, 2]
    assert len(pictures.of_different_videos(reader("a" * 50), 4)) == 4


def test_pca_colours_follow_the_strongest_direction() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=200)
    tokens = (level[:, None] * np.array([3.0, 0, 4.0, 0]) + 0.01 * rng.normal(size=(200, 4))).astype(
        np.float32
    )
    colours, share = pictures.pca_colours(tokens)
    assert abs(np.corrcoef(colours[:, 0], level)[0, 1]) > 0.98
    assert share > 0.99
    assert colours.min() >= 0
    assert colours.max() <= 1


@pytest.mark.parametrize("shape", [(6, 2), (5, 4)])
def test_pca_of_collapsed_or_narrow_features_is_still_a_picture(shape: tuple[int, int]) -> None:
    colours, _ = pictures.pca_colours(np.ones(shape, np.float32))
    assert colours.shape == (shape[0], 3)
    assert np.isfinite(colours).all()


def test_features_of_both_encoders_stand_under_the_clip(tmp_path: Path) -> None:
    class Random(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(x), 4 * 16, 12, generator=torch.Generator().manual_seed(0))

    encoders: Any = {"trained": Random(), "untrained": Random()}
    picture = pictures.draw_features(_clips(1)[0], encoders, CONFIG, 40, tmp_path)
    with Image.open(picture.path) as sheet:
        assert sheet.size[1] == 3 * 112 + 2 * 6
    assert "step 40" in picture.caption


def test_neighbours_come_from_what_the_probe_wrote_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader:
        def __init__(self, root: str, split: str) -> None:
            pass

        def read_for(self, data: object, number: int) -> Any:
            return SimpleNamespace(frames_THWC=_clips(number + 1)[number])

    monkeypatch.setattr(pictures, "ClipReader", Reader)
    (tmp_path / "pictures").mkdir()
    assert pictures._neighbours(tmp_path, CONFIG) == []
    clip = {"split": "train", "index": 0, "video": "a"}
    near = [{"split": "train", "index": 1, "video": v} for v in "ab"]
    (tmp_path / "probe.json").write_text(json.dumps({"examples": [{"query": clip, "nearest": near}]}))
    (picture,) = pictures._neighbours(tmp_path, CONFIG)
    with Image.open(picture.path) as sheet:
        pixels = np.asarray(sheet)
    left = sheets.GUTTER + 112 + 6
    assert tuple(pixels[1, left + 1, :3]) == pictures.RIGHT
    assert tuple(pixels[1, left + 118 + 1, :3]) == pictures.WRONG


def test_pictures_that_cannot_be_had_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: Any) -> None:
        raise DataError("the data set is gone")

    monkeypatch.setattr(pictures, "ClipReader", gone)
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG.model_dump(mode="json")))
    drawn, missing = pictures.draw_pictures(tmp_path)
    assert drawn == []
    assert "no picture of clips with their masks: the data set is gone" in missing
    assert any("no whole checkpoint" in sentence for sentence in missing)


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        pictures.draw_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text("name: [")
    with pytest.raises(CheckpointError, match="no config of this release"):
        pictures.draw_pictures(tmp_path)


def test_moments_are_spread_over_a_clip_and_none_is_shown_twice() -> None:
    assert sheets.spread(8, 4) == [1, 3, 5, 7]
    assert sheets.spread(4, 6) == [0, 1, 2, 3]
