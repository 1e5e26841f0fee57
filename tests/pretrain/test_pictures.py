"""Pictures: what is shaded is what is hidden, colours follow the features, curves hold their gaps."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import CheckpointError, DataError
from pretrain import curves, pictures, sheets
from pretrain.config import RunConfig

CONFIG = RunConfig.model_validate(
    {
        "name": "pictures",
        "data": {"shards": "nowhere", "frames": 8, "fps": 8.0, "size": 32},
        "model": {"encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 3, "patch": 8}},
    }
)
METRICS: list[dict[str, Any]] = [
    {
        "step": step,
        "loss": None if step == 30 else 1.0 / step,
        "loss/mask0": 1.1 / step,
        "loss/mask1": 0.9 / step,
        "optim/lr": 1e-3,
        "optim/momentum": 0.99,
        "perf/clips_per_s": 40.0 + step % 3,
        "data/wait_share": 0.01,
        "batch_digest": "abc",
    }
    | ({"health/target_std": 0.9, "health/target_std_untrained": 1.0} if step == 1 else {})
    for step in range(1, 41)
]


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


def test_every_curve_is_svg_with_clear_ground_and_words(tmp_path: Path) -> None:
    drawn = curves.draw_curves(METRICS, tmp_path)
    assert [p.path.stem for p in drawn] == ["loss", "spread", "throughput", "schedule"]
    for picture in drawn:
        root = ET.parse(picture.path).getroot()
        assert root.tag.endswith("svg")
        assert "<text" in picture.path.read_text()
        assert curves.AXIS in picture.path.read_text()
    text = (tmp_path / "loss.svg").read_text()
    assert ">masks 1<" in text
    assert ">mean<" in text


def test_the_same_metrics_give_the_same_bytes(tmp_path: Path) -> None:
    before = {p.path: p.path.read_bytes() for p in curves.draw_curves(METRICS, tmp_path)}
    for picture in curves.draw_curves(METRICS, tmp_path):
        assert picture.path.read_bytes() == before[picture.path]


def test_a_run_of_one_step_and_one_of_none_can_be_drawn(tmp_path: Path) -> None:
    assert curves.draw_curves(METRICS[:1], tmp_path)
    assert curves.draw_curves([], tmp_path) == []


def test_smoothing_keeps_gaps_and_ends() -> None:
    values = np.arange(100.0)
    values[50] = np.nan
    smooth = curves.smoothed(values)
    assert np.isnan(smooth[50])
    assert smooth[0] == 0
    assert smooth[99] == 99
    assert smooth[20] == pytest.approx(20)


def test_names_of_lines_are_moved_apart_and_stay_inside() -> None:
    moved = curves.apart([0.2, 0.95, 0.97, 0.99])
    assert moved[0] == 0.2
    assert max(moved) <= 1
    assert min(b - a for a, b in itertools.pairwise(moved)) > 0.0999


def test_a_run_without_data_or_checkpoint_still_gets_its_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> None:
        raise DataError("the data set is gone")

    monkeypatch.setattr(pictures, "ClipReader", gone)
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG.model_dump(mode="json")))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    drawn, missing = pictures.draw_pictures(tmp_path)
    assert {p.path.suffix for p in drawn} == {".svg"}
    assert "no picture of clips with their masks: the data set is gone" in missing
    assert any("no whole checkpoint" in sentence for sentence in missing)


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        pictures.draw_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text("name: [")
    with pytest.raises(CheckpointError, match="no config of this release"):
        pictures.draw_pictures(tmp_path)
