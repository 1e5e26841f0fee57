"""Folders of transformers' VJEPA2Model, read and written without transformers.

transformers knows V-JEPA 2 only: rotary positions as released, one level, pictures as clips that stand
still. What it cannot say is refused with what to do instead.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.config import EncoderConfig, ModelConfig, PredictorConfig
from pretrain.config.base import first_finding
from pretrain.weights.base import Clips, Description, PredictorForm, Weights, expected_shapes
from pretrain.weights.card import huggingface_card
from pretrain.weights.names import huggingface_parts
from pretrain.weights.presets import encoder_config
from pretrain.weights.publish import TENSORS, read_json, read_tensors, whole_folder, write_json, write_tensors
from pretrain.weights.report import Report, take

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PROCESSOR = "video_preprocessor_config.json"
CARD = "README.md"
MODEL_TYPE = "vjepa2"
INSTEAD = "export it with --format foreframe, which `Encoder.from_pretrained` of foreframe reads"

# What transformers takes where config.json is silent.
DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
}
# What our model has built in; another value means another model.
FIXED: dict[str, Any] = {
    "in_chans": 3,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "pred_mlp_ratio": 4.0,
}


def is_huggingface(path: Path) -> bool:
    return (path / CONFIG).is_file() and ((path / TENSORS).is_file() or (path / INDEX).is_file())


def read_huggingface(path: Path) -> tuple[Weights, Report]:
    """Weights of a VJEPA2Model, also of one below a classifier, and what became of their keys.

    Raises: CheckpointError when a file is missing or damaged, or the model is none of ours.
    """
    plain = read_json(path / CONFIG)
    if plain.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path / CONFIG} has model_type {plain.get('model_type')!r}; only {MODEL_TYPE} can be read"
        )
    description = _description(path, plain)
    report = Report(str(path))
    report.notes.append("frames a second: not in the folder")
    source: dict[str, Tensor] = {}
    for name, tensor in _tensors(path).items():
        if name.removeprefix(f"{MODEL_TYPE}.") in source:
            raise CheckpointError(f"{path} holds {name} twice, under different names: which one counts?")
        if name.startswith(("pooler.", "classifier.")):
            report.set_aside[name] = "of a classifier, which foreframe does not have"
        else:
            source[name.removeprefix(f"{MODEL_TYPE}.")] = tensor
    parts = huggingface_parts(description.model, description.predictor)
    tensors = take(parts, expected_shapes(description), source, report)
    return Weights(description, tensors), report


def _description(path: Path, plain: dict[str, Any]) -> Description:
    """config.json in our words. Raises: CheckpointError."""
    for key, value in FIXED.items():
        if plain.get(key, value) != value:
            raise CheckpointError(f"{path / CONFIG}: {key} is {plain[key]!r}; foreframe has {value!r} only")
    told = {key: plain.get(key, value) for key, value in DEFAULTS.items()}
    patch = told["patch_size"]
    if isinstance(patch, list) and len(set(patch)) == 1:
        told["patch_size"] = patch[0]
    for key, value in told.items():
        _check_number(path, key, value)
    _check_normalisation(path)
    name, width = path.absolute().name, told["hidden_size"]
    try:
        encoder = encoder_config(
            width=width,
            depth=told["num_hidden_layers"],
            heads=told["num_attention_heads"],
            hidden=int(width * told["mlp_ratio"]),
            patch=told["patch_size"],
            tubelet=told["tubelet_size"],
        )
        predictor = PredictorConfig(
            depth=told["pred_num_hidden_layers"],
            width=told["pred_hidden_size"],
            heads=told["pred_num_attention_heads"],
            mask_tokens=told["pred_num_mask_tokens"],
        )
        return Description(
            model=ModelConfig(encoder=encoder, predictor=predictor),
            clips=Clips(frames=told["frames_per_clip"], size=told["crop_size"]),
            predictor=PredictorForm(out_width=width),
            provenance={"name": name, "source": f"transformers folder {name}"},
        )
    except ValidationError as error:
        raise CheckpointError(f"{path / CONFIG} cannot be used: {first_finding(error)}") from error
    except (ValueError, OverflowError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be used: {error}") from error


def _check_number(path: Path, key: str, value: Any) -> None:
    """Raises: CheckpointError when it is no size or number of anything."""
    is_ratio = isinstance(DEFAULTS[key], float)
    kinds = int | float if is_ratio else int
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not 0 < value < (1000 if is_ratio else math.inf)
    ):
        need = "a number above 0 and below 1000" if is_ratio else "a whole number above 0"
        raise CheckpointError(f"{path / CONFIG}: {key} is {value!r}: need {need}")


def _check_normalisation(path: Path) -> None:
    if not (path / PROCESSOR).is_file():
        return
    plain, known = read_json(path / PROCESSOR), _processor(256)
    for key in ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize"):
        got = plain.get(key, known[key])
        if not _is_near(got, known[key]):
            raise CheckpointError(f"{path / PROCESSOR}: {key} is {got}; foreframe has {known[key]} only")


def _is_near(got: Any, known: Any) -> bool:
    """Equal values, numbers to 1e-6, lists item by item."""
    if isinstance(known, list):
        return isinstance(got, list) and len(got) == len(known) and all(map(_is_near, got, known))
    if isinstance(known, bool) or isinstance(got, bool) or not isinstance(got, int | float):
        return bool(got == known)
    return math.isclose(got, known, rel_tol=1e-6)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Of one file, or of all that the index names."""
    if not (path / INDEX).is_file():
        return read_tensors(path / TENSORS)
    files = read_json(path / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(Path(str(name)).name == name for name in files.values()):
        raise CheckpointError(f"{path / INDEX} has no weight_map of files beside it")
    found: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        found |= read_tensors(path / name)
    return found


def write_huggingface(
    weights: Weights, out: Path, *, force: bool = False, allow_partial: bool = False
) -> None:
    """Write a folder that `transformers.AutoModel.from_pretrained` loads, whole or not at all.

    Raises: UsageError when transformers has no such model, or `out` exists; CheckpointError.
    """
    check_is_vjepa2(weights, allow_partial=allow_partial)
    description = weights.description
    tensors: dict[str, Tensor] = {}
    for part in huggingface_parts(description.model, description.predictor):
        if part.ours in weights.tensors:
            tensors |= part.parted(weights.tensors[part.ours])
    with whole_folder(out, force=force) as folder:
        write_tensors(folder / TENSORS, tensors)
        write_json(folder / CONFIG, _config(weights))
        write_json(folder / PROCESSOR, _processor(description.clips.size))
        (folder / CARD).write_text(huggingface_card(weights), encoding="utf-8")


def check_is_vjepa2(weights: Weights, *, allow_partial: bool = False) -> None:
    """Raises: UsageError naming everything that transformers' model does not have."""
    description = weights.description
    encoder, form = description.model.encoder, description.predictor
    reasons = []
    if encoder.rope != "vjepa2":
        reasons.append(f"model.encoder.rope is {encoder.rope}, it has vjepa2 only")
    if encoder.rope_span is not None:
        reasons.append("model.encoder.rope_span is set, it does not stretch positions")
    if encoder.levels:
        reasons.append(f"model.encoder.levels is {list(encoder.levels)}, it has one level")
    if encoder.pictures != "repeat":
        reasons.append("model.encoder.pictures is own, it has one patch embedding")
    if form is not None and form.kind == "action":
        reasons.append("the predictor takes actions")
    elif form is not None and form.out_width != encoder.shape[0]:
        reasons.append(f"the predictor says {form.out_width} numbers a token, not {encoder.shape[0]}")
    if form is not None and form.says_context:
        reasons.append("the predictor also says the tokens it sees")
    if form is None and not allow_partial:
        reasons.append(
            "these weights have no predictor, and transformers would make a random one "
            "(--allow-partial lets it)"
        )
    if reasons:
        raise UsageError(f"transformers' VJEPA2Model is another model: {'; '.join(reasons)}. Else {INSTEAD}.")


def _config(weights: Weights) -> dict[str, Any]:
    """config.json as transformers reads it."""
    description = weights.description
    model, clips = description.model, description.clips
    width, depth, heads, _ = model.encoder.shape
    config: dict[str, Any] = {
        "architectures": ["VJEPA2Model"],
        "model_type": MODEL_TYPE,
        "patch_size": model.encoder.patch,
        "tubelet_size": model.encoder.tubelet,
        "crop_size": clips.size,
        "frames_per_clip": clips.frames,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_ratio": mlp_ratio(width, _hidden(model.encoder)),
        "initializer_range": model.init_std,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    if description.predictor is not None:
        config |= {
            "pred_hidden_size": model.predictor.width,
            "pred_num_hidden_layers": model.predictor.depth,
            "pred_num_attention_heads": model.predictor.heads,
            "pred_num_mask_tokens": model.predictor.mask_tokens or max(1, len(description.masks)),
            "pred_zero_init_mask_tokens": True,
        }
    return config | FIXED


def _hidden(encoder: EncoderConfig) -> int:
    width, _, _, ratio = encoder.shape
    return round(width * ratio)


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio of which transformers, which rounds down, makes `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _processor(size: int) -> dict[str, Any]:
    """video_preprocessor_config.json: the short side a little larger than the crop, as V-JEPA 2 evaluates."""
    default = Description.model_fields["normalisation"].default
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": int(size * 256 / 224)},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": list(default.mean),
        "image_std": list(default.std),
    }
