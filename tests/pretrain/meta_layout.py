"""Meta's checkpoints written out by hand from our weights, apart from the code that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.weights.base import Weights

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def meta_encoder(weights: Weights, norms: int = 0) -> dict[str, Tensor]:
    """The encoder as Meta's state dict has it. norms: of V-JEPA 2.1, the last of which is taken."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.part("encoder").items():
        first, _, rest = name.partition(".")
        if first == "embed":
            found[f"patch_embed.proj.{rest}"] = tensor
        elif first == "embed_pictures":
            found[f"patch_embed_img.proj.{rest}"] = tensor
        elif first == "modalities":
            found["video_mod_embed"], found["img_mod_embed"] = tensor[0][None, None], tensor[1][None, None]
        elif first == "level_norms":
            found[f"norms_block.{rest}"] = tensor
        elif first == "norm":
            found[f"norms_block.{norms - 1}.{rest}" if norms else name] = tensor
        else:
            found[block_name(name)] = tensor
    return found


def meta_predictor(weights: Weights) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in weights.part("predictor").items():
        first, _, rest = name.partition(".")
        if first == "mask_tokens":
            found |= {f"mask_tokens.{row}": token.view(1, 1, -1) for row, token in enumerate(tensor)}
        elif first == "modalities":
            found["video_mod_embed"], found["img_mod_embed"] = tensor[0][None, None], tensor[1][None, None]
        elif first in ("embed_action", "embed_state"):
            found[f"{first.removeprefix('embed_')}_encoder.{rest}"] = tensor
        elif first == "blocks":
            found[f"predictor_{block_name(name)}"] = tensor
        else:
            theirs = {"embed": "embed", "norm": "norm", "out": "proj", "out_context": "proj_context"}[first]
            found[f"predictor_{theirs}.{rest}"] = tensor
    return found


def block_name(name: str) -> str:
    blocks, number, layer, kind = name.split(".")
    return f"{blocks}.{number}.{LAYERS.get(layer, layer)}.{kind}"


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DistributedDataParallel around a wrapper names it."""
    return {f"module.backbone.{name}": tensor for name, tensor in state.items()}


def save(path: Path, weights: Weights, norms: int = 0, **changes: Any) -> Path:
    """A training checkpoint. changes: laid over its keys."""
    plain: dict[str, Any] = {
        "encoder": wrapped({name: tensor + 1 for name, tensor in meta_encoder(weights, norms).items()}),
        "target_encoder": wrapped(meta_encoder(weights, norms)),
        "predictor": wrapped(meta_predictor(weights)),
        "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "scaler": None,
        "epoch": 3,
        "loss": 0.5,
    } | changes
    torch.save({key: value for key, value in plain.items() if value is not ...}, path)
    return path
