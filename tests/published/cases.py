"""Cases that Meta's own code and ours both compute, with numbers that follow from names alone.

Shapes: B clips, K kinds of masks, lists of tokens (K, B, kept) and (K, B, hidden).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.config import RunConfig
from pretrain.masks import Masks
from pretrain.weights.base import Clips, Description, PredictorForm, Weights, expected_shapes

CLIPS, SIZE, FRAMES, PATCH, WIDTH, INSIDE, HEADS, ACTION = 3, 64, 4, 16, 48, 24, 2, 7
FEATURE_STRIDE = 11  # of the channels of the last token that are written down
STEP = 20  # V-JEPA 2.1's context loss has half its weight there
MASKS = [{"blocks": 4, "spatial_scale": 0.3}, {"blocks": 1, "spatial_scale": 0.7}]


@dataclass(frozen=True)
class Case:
    """source: the repository whose code is run. norms: last norms of V-JEPA 2.1's encoder."""

    source: str
    encoder: dict[str, Any]
    predictor: dict[str, Any]
    objective: dict[str, Any] = field(default_factory=dict)
    depth: int = 2
    norms: int = 0
    are_pictures: bool = False

    @property
    def config(self) -> RunConfig:
        shape = {"preset": "vit_tiny", "width": WIDTH, "depth": self.depth, "heads": HEADS, "patch": PATCH}
        inside = {"depth": 2, "width": INSIDE, "heads": HEADS}
        masks = {"kind": "masked_latent", "masks": MASKS, "picture_masks": MASKS[:1], "truncate": "raster"}
        return RunConfig.model_validate(
            {
                "name": "published",
                "data": {"shards": "nowhere", "frames": FRAMES, "size": SIZE},
                "model": {"encoder": shape | self.encoder, "predictor": inside | self.predictor},
                "objective": masks | self.objective,
            }
        )

    def weights(self, part: str) -> Weights:
        """part: `context` or `target`, whose encoders have other numbers."""
        config, takes_actions = self.config, self.source == "vjepa2-ac"
        form = PredictorForm(
            out_width=WIDTH * config.model.encoder.num_levels,
            says_context="context_loss" in self.objective,
        )
        if takes_actions:
            form = PredictorForm(kind="action", out_width=WIDTH, action_size=ACTION, state_size=ACTION)
        description = Description(model=config.model, clips=Clips(frames=FRAMES, size=SIZE), predictor=form)
        shapes = expected_shapes(description)
        return Weights(
            description, {name: numbers(f"{part} {name}", shape) for name, shape in shapes.items()}
        )

    def clips(self) -> Tensor:
        """Normalised clips (B, C, T, S, S)."""
        return numbers("clips", (CLIPS, 3, 1 if self.are_pictures else FRAMES, SIZE, SIZE)) / 0.2


CASES = {
    "V-JEPA": Case("jepa", {"rope": "none"}, {"mask_tokens": 2}),
    "V-JEPA 2": Case("vjepa2", {"rope": "vjepa2"}, {"mask_tokens": 1}),
    **{
        f"V-JEPA 2.1, {kind}": Case(
            "vjepa2-1",
            {
                "rope": "interleaved",
                "rope_span": 256 // PATCH,
                "levels": [3, 6, 9, 12],
                "pictures": "own",
            },
            {"mask_tokens": 1, "depth": 4},  # theirs knows its own depths only
            {"context_loss": {"weight": 0.5, "warmup": [10, 30]}},
            depth=12,
            norms=4,
            are_pictures=kind == "pictures",
        )
        for kind in ("clips", "pictures")
    },
    "V-JEPA 2-AC": Case("vjepa2-ac", {"rope": "vjepa2"}, {"mask_tokens": None}),
}


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Small numbers, float32, that depend on the name and the shape only; a norm's weights are near 1."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * 0.2
    is_scale = "norm" in name and name.endswith("weight")
    return torch.from_numpy(drawn + is_scale).to(torch.float32)


def token_lists(masks: Masks) -> dict[str, list[list[list[int]]]]:
    """kept and hidden tokens of each clip under each kind, as Meta's collator hands them on."""
    found: dict[str, list[list[list[int]]]] = {}
    for key, places, lengths in (
        ("kept", masks.kept_M, masks.kept_lengths),
        ("hidden", masks.hidden_P, masks.hidden_lengths),
    ):
        rows = [(row % masks.num_tokens).tolist() for row in places.split(list(lengths))]
        found[key] = [rows[at : at + CLIPS] for at in range(0, len(rows), CLIPS)]
    return found


def masks_of(lists: dict[str, list[list[list[int]]]], num_tokens: int, *, are_pictures: bool) -> Masks:
    rows = {key: [row for kind in kinds for row in kind] for key, kinds in lists.items()}
    places = {
        key: torch.tensor([at * num_tokens + token for at, row in enumerate(found) for token in row])
        for key, found in rows.items()
    }
    kinds = len(lists["kept"])
    return Masks(
        num_tokens=num_tokens,
        num_kinds=kinds,
        clips=tuple(range(CLIPS)) * kinds,
        kinds=tuple(kind for kind in range(kinds) for _ in range(CLIPS)),
        pictures=(are_pictures,) * CLIPS,
        kept_M=places["kept"],
        hidden_P=places["hidden"],
        kept_lengths=tuple(map(len, rows["kept"])),
        hidden_lengths=tuple(map(len, rows["hidden"])),
    )
