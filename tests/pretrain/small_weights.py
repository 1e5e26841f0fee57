"""Small weights of every kind with random numbers, for tests of what writes and reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.config import ModelConfig
from pretrain.masks import Masks
from pretrain.weights.base import Clips, Description, PredictorForm, Weights, expected_shapes

WIDTH, INSIDE, SIZE, FRAMES = 48, 24, 32, 4


def small_weights(form: PredictorForm | None = None, depth: int = 2, **encoder: Any) -> Weights:
    """An encoder 48 wide over 4 frames of 32² in patches of 8, and a masked predictor unless told otherwise.

    encoder: further settings of the encoder's config.
    """
    shape = {"preset": "vit_tiny", "width": WIDTH, "depth": depth, "heads": 2, "patch": 8}
    model = ModelConfig.model_validate(
        {
            "encoder": shape | encoder,
            "predictor": {"depth": 2, "width": INSIDE, "heads": 2, "mask_tokens": 3},
        }
    )
    levels = model.encoder.num_levels
    description = Description(
        model=model,
        clips=Clips(frames=FRAMES, size=SIZE, fps=4.0),
        predictor=form or PredictorForm(out_width=WIDTH * levels),
        masks=({"kind": "tubes", "hidden": 0.9},),
        provenance={"name": "small", "step": 7},
    )
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(description)
    return Weights(
        description, {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    )


def clips(count: int = 2, frames: int = FRAMES, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def third_kept(num_tokens: int, count: int = 2, kind: int = 0) -> tuple[Masks, Tensor, Tensor]:
    """Masks of `count` clips that keep a third of the tokens; kept (B, K) and hidden (B, P) tokens."""
    generator = torch.Generator().manual_seed(2)
    order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(count)])
    kept = order[:, : num_tokens // 3].sort(dim=1).values
    hidden = order[:, num_tokens // 3 :].sort(dim=1).values
    start = torch.arange(count)[:, None] * num_tokens
    masks = Masks(
        num_tokens=num_tokens,
        num_kinds=kind + 1,
        clips=tuple(range(count)),
        kinds=(kind,) * count,
        pictures=(False,) * count,
        kept_M=(start + kept).flatten(),
        hidden_P=(start + hidden).flatten(),
        kept_lengths=(kept.shape[1],) * count,
        hidden_lengths=(hidden.shape[1],) * count,
    )
    return masks, kept, hidden
