"""Features for users: the same tokens as the module gives, for any size, from anywhere; or a sentence."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import CheckpointError, DataError, UsageError
from launch.train import run_train
from pretrain.checkpoint import load_encoder
from pretrain.features import Encoder
from pretrain.weights.folder import write_folder
from pretrain.weights.huggingface import write_huggingface
from tests.pretrain.small_weights import small_weights
from tests.small_dataset import tiny_config


def clips(count: int, frames: int, height: int, width: int) -> np.ndarray:
    shape = (count, frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(small_weights())


def test_tokens_are_those_of_normalised_pixels(encoder: Encoder) -> None:
    """Beside a reference that normalises by hand and asks the module."""
    x_BTHWC = clips(3, 4, 32, 32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((x_BTHWC / 255 - mean) / std).float().permute(0, 4, 1, 2, 3)
    tokens = encoder(x_BTHWC)
    torch.testing.assert_close(tokens, encoder._module(pixels), atol=1e-5, rtol=0)
    assert (tokens.shape, tokens.dtype, tokens.requires_grad) == ((3, 32, 48), torch.float32, False)
    assert torch.equal(tokens, encoder(torch.from_numpy(x_BTHWC)))
    assert tokens.unflatten(1, encoder.grid).shape == (3, 2, 4, 4, 48)


@pytest.mark.parametrize("rope", ["vjepa2", "interleaved", "none"])
def test_clips_of_other_sizes_and_lengths_make_their_own_grid(rope: str) -> None:
    encoder = Encoder(small_weights(rope=rope))
    for frames, height, width in ((2, 32, 32), (8, 32, 32), (4, 48, 24), (1, 32, 32)):
        x_BTHWC = clips(2, frames, height, width)
        grid = encoder.grid_of(x_BTHWC)
        assert grid == (max(1, frames // 2), height // 8, width // 8)
        assert encoder(x_BTHWC).unflatten(1, grid).shape == (2, *grid, 48)


def test_a_clip_alone_equals_itself_among_others(encoder: Encoder) -> None:
    x_BTHWC = clips(3, 4, 32, 32)
    torch.testing.assert_close(encoder(x_BTHWC)[1:2], encoder(x_BTHWC[1:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (clips(1, 4, 32, 32)[0], "of one clip, clip\\[None\\]"),
        (clips(1, 4, 32, 32).transpose(0, 4, 1, 2, 3), "need \\(clips, frames, height, width, 3\\)"),
        (clips(1, 4, 32, 32) / 255, "are float64: need uint8"),
        (torch.ones(1, 4, 32, 32, 3), "are torch.float32: need uint8"),
        ("clip.mp4", "are a str: need a numpy array or a tensor"),
        (clips(1, 4, 32, 32)[0, 0, 0], "are of shape"),
        (clips(1, 3, 32, 32), "of 3 frames: need a multiple of 2, or 1"),
        (clips(0, 4, 32, 32), "the batch is empty"),
        (clips(1, 4, 30, 32), "30 × 32 pixels: need multiples of 8; `preprocess` makes squares of 32"),
    ],
)
def test_clips_that_do_not_fit_are_refused_with_a_sentence(
    encoder: Encoder, given: np.ndarray, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        encoder(given)


def test_preprocess_takes_the_centre_of_the_short_side(encoder: Encoder) -> None:
    video = clips(1, 4, 64, 128)[0]
    video[:, :, :32] = video[:, :, -32:] = 0
    view = encoder.preprocess(video)
    assert (view.shape, view.dtype) == ((4, 32, 32, 3), torch.uint8)
    assert int(view[:, :, 0].float().mean()) > 60  # the black sides are cut off
    assert encoder.preprocess(video, 16).shape == (4, 16, 16, 3)
    assert encoder(view[None]).shape == (1, 32, 48)
    blank = np.full((2, 40, 90, 3), 7, dtype=np.uint8)
    assert (encoder.preprocess(blank) == 7).all()


def test_arrays_that_run_backwards_or_are_read_only_are_taken(encoder: Encoder) -> None:
    x_BTHWC = clips(1, 4, 32, 32)
    wanted = encoder(x_BTHWC[:, ::-1].copy())
    assert torch.equal(encoder(x_BTHWC[:, ::-1]), wanted)
    assert torch.equal(encoder.preprocess(x_BTHWC[0, ::-1]), torch.from_numpy(x_BTHWC[0, ::-1].copy()))
    x_BTHWC.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(x_BTHWC)


@pytest.mark.parametrize(
    ("video", "size", "said"),
    [
        (clips(1, 4, 32, 32)[0] / 255, None, "are float64: need uint8"),
        (clips(1, 4, 32, 32), None, r"need \(frames, height, width, 3\)"),
        (clips(1, 4, 0, 32)[0], None, "there is no pixel"),
        (clips(1, 4, 32, 32)[0], -4, "size -4: need a multiple of the patch, 8 pixels"),
        (clips(1, 4, 32, 32)[0], 20, "size 20: need a multiple"),
    ],
)
def test_videos_that_cannot_be_prepared_are_refused_with_a_sentence(
    encoder: Encoder, video: np.ndarray, size: int | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        encoder.preprocess(video, size)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_a_sentence(device: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used here"):
        Encoder(small_weights(), device)


def test_every_source_gives_the_same_tokens(tmp_path: Path, encoder: Encoder) -> None:
    weights = small_weights()
    write_folder(weights, tmp_path / "ours")
    write_huggingface(weights, tmp_path / "theirs")
    x_BTHWC = clips(2, 4, 32, 32)
    wanted = encoder(x_BTHWC)
    for name in ("ours", "theirs"):
        assert torch.equal(Encoder.from_pretrained(tmp_path / name)(x_BTHWC), wanted)
        assert torch.equal(Encoder.from_pretrained(str(tmp_path / name))(x_BTHWC), wanted)


def test_a_run_gives_the_target_encoder_of_its_newest_checkpoint(small_dataset: Path, tmp_path: Path) -> None:
    saving = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2}
    run = run_train(tiny_config(small_dataset, tmp_path, train=saving), quiet=True).run
    found = Encoder.from_pretrained(run)
    target, _, step = load_encoder(run)
    assert found.description.provenance["step"] == step == 4
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, found._module.get_parameter(name))


def test_the_readmes_lines_run_as_they_are_written(tmp_path: Path) -> None:
    """With the path of small weights in the place of the demo's run."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = [found for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Encoder" in found]
    assert len(block.splitlines()) <= 12
    write_folder(small_weights(), tmp_path / "weights")
    assert block.count('"runs/demo/run"') == 1
    names: dict[str, Any] = {}
    exec(block.replace('"runs/demo/run"', repr(str(tmp_path / "weights"))), names)
    assert names["clips_BTHWC"].shape == (1, 4, 32, 32, 3)
    assert torch.equal(names["tokens_BND"], Encoder(small_weights())(names["clips_BTHWC"]))
    assert names["map_BtrcD"].shape == (1, 2, 4, 4, 48)


def test_weights_with_another_normalisation_are_refused(tmp_path: Path) -> None:
    write_folder(small_weights(), tmp_path / "a")
    path = tmp_path / "a" / "model.json"
    plain = json.loads(path.read_text())
    plain["normalisation"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="want pixels normalised by"):
        Encoder.from_pretrained(tmp_path / "a")


def test_a_path_that_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        Encoder.from_pretrained(tmp_path / "nowhere")
