"""Hugging Face's layout against transformers itself: same outputs, same bytes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.config import PRESETS
from pretrain.model.actions import ActionPredictor
from pretrain.weights.base import PredictorForm, Weights, build_encoder, build_predictor
from pretrain.weights.folder import read_folder, write_folder
from pretrain.weights.huggingface import mlp_ratio, read_huggingface, write_huggingface
from pretrain.weights.read import open_weights, read_weights
from tests.pretrain.small_weights import WIDTH, clips, small_weights, third_kept

transformers = pytest.importorskip("transformers")


def their_model(frames: int = 8) -> Any:
    """A small VJEPA2Model with random weights, mask tokens and norms too."""
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=frames,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=3,
        mlp_ratio=4,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=4,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("frames", [4, 8])
@torch.no_grad()
def test_encoder_and_predictor_equal_transformers(tmp_path: Path, frames: int) -> None:
    theirs = their_model(frames)
    theirs.save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    x = clips(2, frames)
    encoder, predictor = build_encoder(weights), build_predictor(weights)
    # transformers' model takes the mask token 1 of its predictor, as ours does for the mask kind 1.
    masks, kept, hidden = third_kept(frames // 2 * 16, kind=1)
    wanted = theirs(pixel_values_videos=x.transpose(1, 2), context_mask=[kept], target_mask=[hidden])
    features = encoder(x)
    torch.testing.assert_close(features, wanted.last_hidden_state, atol=1e-5, rtol=0)
    assert not isinstance(predictor, ActionPredictor)
    said, _ = predictor(features.flatten(0, 1)[masks.kept_M], masks)
    torch.testing.assert_close(
        said, wanted.predictor_output.last_hidden_state.flatten(0, 1), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_what_we_write_is_loaded_by_transformers_with_equal_outputs(tmp_path: Path) -> None:
    weights = small_weights()
    write_huggingface(weights, tmp_path / "out")
    theirs, told = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = clips()
    masks, kept, hidden = third_kept(32, kind=1)
    wanted = theirs.eval()(pixel_values_videos=x.transpose(1, 2), context_mask=[kept], target_mask=[hidden])
    features = build_encoder(weights)(x)
    torch.testing.assert_close(features, wanted.last_hidden_state, atol=1e-5, rtol=0)
    predictor = build_predictor(weights)
    assert not isinstance(predictor, ActionPredictor)
    said, _ = predictor(features.flatten(0, 1)[masks.kept_M], masks)
    torch.testing.assert_close(
        said, wanted.predictor_output.last_hidden_state.flatten(0, 1), atol=1e-5, rtol=0
    )


def test_export_import_export_is_bit_exact(tmp_path: Path) -> None:
    """By way of transformers' layout and of ours, from transformers' own file and from our weights."""
    their_model().save_pretrained(tmp_path / "theirs")
    write_huggingface(small_weights(), tmp_path / "ours")
    for name in ("theirs", "ours"):
        write_folder(read_weights(tmp_path / name), tmp_path / f"{name}-in")
        write_huggingface(read_weights(tmp_path / f"{name}-in"), tmp_path / f"{name}-out")
        write_folder(read_weights(tmp_path / f"{name}-out"), tmp_path / f"{name}-again")
        for before, after in ((name, f"{name}-out"), (f"{name}-in", f"{name}-again")):
            files = [tmp_path / folder / "model.safetensors" for folder in (before, after)]
            assert files[0].read_bytes() == files[1].read_bytes()
    config = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "theirs-out")]
    known = {key: value for key, value in config[0].items() if key in config[1]}
    known.pop("initializer_range")
    assert {key: config[1][key] for key in known} == known


def test_a_model_in_several_files_and_below_a_classifier_is_read(tmp_path: Path) -> None:
    model = their_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert not (tmp_path / "several" / "model.safetensors").exists()
    whole, several = read_weights(tmp_path / "one"), read_weights(tmp_path / "several")
    assert equal(whole, several)

    classifier = transformers.VJEPA2ForVideoClassification(model.config)
    classifier.vjepa2.load_state_dict(model.state_dict())
    classifier.save_pretrained(tmp_path / "classifier")
    weights, report = open_weights(tmp_path / "classifier")
    report.check()
    assert equal(whole, weights)
    assert "classifier.weight" in report.set_aside
    files = sorted((tmp_path / "several").glob("*.safetensors"))
    files[0].unlink()
    with pytest.raises(CheckpointError, match=rf"{files[0].name} is missing"):
        read_weights(tmp_path / "several")


def equal(a: Weights, b: Weights) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items()
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", "vit", "only vjepa2"),
        ("hidden_act", "silu", "hidden_act is 'silu'"),
        ("qkv_bias", False, "qkv_bias is False"),
        ("mlp_ratio", 3.0, "cannot be used: an MLP of 144 at width 48"),
        ("mlp_ratio", "x", "mlp_ratio is 'x': need a number above 0 and below 1000"),
        ("mlp_ratio", None, "mlp_ratio is None: need a number above 0 and below 1000"),
        ("mlp_ratio", float("nan"), "mlp_ratio is nan: need a number above 0 and below 1000"),
        ("mlp_ratio", 1e308, "mlp_ratio is 1e\\+308: need a number above 0 and below 1000"),
        ("num_attention_heads", 7, "cannot be used: encoder width 48 with 7 heads"),
        ("num_attention_heads", 0, "num_attention_heads is 0: need a whole number above 0"),
        ("hidden_size", "wide", "hidden_size is 'wide': need a whole number above 0"),
        ("hidden_size", 48.5, "hidden_size is 48.5: need a whole number above 0"),
        ("hidden_size", True, "hidden_size is True: need a whole number above 0"),
        ("hidden_size", float("inf"), "hidden_size is inf: need a whole number above 0"),
        ("hidden_size", 10**9, "cannot be used: width: Input should be less than or equal to 65536"),
        ("patch_size", [8, 16], r"patch_size is \[8, 16\]: need a whole number above 0"),
        ("tubelet_size", "2", "tubelet_size is '2': need a whole number above 0"),
        ("crop_size", 33, "cannot be used: clips of 8 frames of 33 pixels a side: need multiples"),
        ("pred_num_mask_tokens", 10**9, "cannot be used: mask_tokens: Input should be less than or equal"),
        ("num_hidden_layers", 2, "unexpected  encoder.layer.2.norm1.weight"),
        ("num_hidden_layers", 4, "missing     encoder.layer.3.attention.query.weight"),
    ],
)
def test_another_model_is_refused_with_what_differs(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    their_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=said):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_mean", [0.485]),
        ("image_mean", []),
        ("image_std", None),
        ("rescale_factor", "abc"),
        ("do_normalize", False),
        ("do_rescale", False),
    ],
)
def test_another_normalisation_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_huggingface(small_weights(), tmp_path / "out")
    path = tmp_path / "out" / "video_preprocessor_config.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {key: value}))
    with pytest.raises(CheckpointError, match=f"{key} is"):
        read_huggingface(tmp_path / "out")


def test_the_processor_is_the_one_transformers_makes(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_huggingface(small_weights(), tmp_path / "out")
    ours = json.loads((tmp_path / "out" / "video_preprocessor_config.json").read_text())
    theirs = transformers.VJEPA2VideoProcessor(crop_size=32).to_dict()
    assert {key: ours[key] for key in ("size", "crop_size", "image_mean", "image_std")} == {
        key: theirs[key] for key in ("size", "crop_size", "image_mean", "image_std")
    }


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (small_weights(rope="interleaved"), "rope is interleaved"),
        (small_weights(rope="none"), "rope is none"),
        (small_weights(rope_span=4), "rope_span"),
        (small_weights(levels=(1, 2)), "levels"),
        (small_weights(pictures="own"), "pictures is own"),
        (small_weights(PredictorForm(kind="action", out_width=WIDTH, action_size=3)), "takes actions"),
        (small_weights(PredictorForm(out_width=9)), "says 9 numbers a token, not 48"),
        (small_weights(PredictorForm(out_width=WIDTH, says_context=True)), "also says the tokens it sees"),
    ],
)
def test_what_transformers_has_not_is_refused_with_what_to_do(
    tmp_path: Path, weights: Weights, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"{said}.*--format foreframe"):
        write_huggingface(weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_folder(weights, tmp_path / "ours")
    found, report = read_folder(tmp_path / "ours")
    report.check()
    assert found.description == weights.description
    assert equal(found, weights)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_width_of_the_mlp_survives_transformers_rounding(preset: str) -> None:
    width, _, _, ratio = PRESETS[preset]
    assert int(width * mlp_ratio(width, round(width * ratio))) == round(width * ratio)
