"""Small objectives and batches of them, for tests."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.config import RunConfig
from pretrain.masks import sample_masks
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Output
from pretrain.objective.make import first_encoder, make_objective

STATES = ("x", "y", "vx", "shape", "noise")
MASKS = [{"blocks": 3, "spatial_scale": 0.15}, {"blocks": 1, "spatial_scale": 0.6}]


def small_config(objective: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """4 frames of 32 × 32 in tokens of (2, 8, 8): 2 × 4 × 4 of them; an encoder of two blocks."""
    given = {"kind": "masked_latent", "masks": MASKS} if objective is None else objective
    encoder = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8}
    predictor = {"depth": 2, "width": 24, "heads": 2}
    return RunConfig.model_validate(
        {
            "name": "objective",
            "data": {"shards": "nowhere", "frames": 4, "size": 32},
            "model": {
                "encoder": encoder | sections.pop("encoder", {}),
                "predictor": predictor | sections.pop("predictor", {}),
            },
            "objective": given,
            **sections,
        }
    )


def small_batch(
    config: RunConfig, clips: int = 3, first: int = 0, *, step: int = 0, pictures: tuple[bool, ...] = ()
) -> Batch:
    """Clips of noise at positions first … of the stream, with actions of 3 and states of 5 numbers."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, 4, 32, 32, generator=generator)[first : first + clips]
    actions = torch.randn(6, 4, 3, generator=generator)[first : first + clips]
    states = torch.randn(6, 4, 5, generator=generator)[first : first + clips]
    states[..., STATES.index("shape")] = torch.tensor([0, 2, 1, 1, 0, 2])[first : first + clips, None]
    for clip, is_picture in enumerate(pictures):
        if is_picture:
            x[clip] = x[clip, :, :1]
    positions = tuple(range(first, first + clips))
    masks = sample_masks(
        config.objective.masks,
        config.grid,
        0,
        step,
        positions,
        truncate=config.objective.truncate,
        pictures=pictures,
        picture_configs=config.objective.picture_masks if any(pictures) else (),
    )
    keys = tuple(map(str, positions))
    return Batch(step, positions, keys, x, masks, states, actions, state_names=STATES)


def woken(objective: Objective) -> Objective:
    """The objective with larger weights than at the start, where hardly anything depends on anything."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return objective


def make(config: RunConfig) -> Objective:
    return woken(make_objective(config))


FROZEN: dict[str, Any] = {"target": {"kind": "frozen"}}
AS_FILMED: dict[str, Any] = {"augment": {"hflip": False}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masked": ({"kind": "masked_latent", "masks": MASKS}, {}),
    "masked, 2.1": (
        {"kind": "masked_latent", "masks": MASKS, "context_loss": {"warmup": [0, 0]}},
        {"encoder": {"levels": [1, 2], "pictures": "own"}},
    ),
    "masked, raster": ({"kind": "masked_latent", "masks": MASKS, "truncate": "raster"}, {}),
    "masked, sincos": ({"kind": "masked_latent", "masks": MASKS}, {"encoder": {"rope": "none"}}),
    "pixel": ({"kind": "pixel", "masks": MASKS}, {}),
    "contrastive": ({"kind": "contrastive", "masks": MASKS, "tokens": 40}, {}),
    "future": ({"kind": "future_latent", "action_size": 3}, AS_FILMED),
    "future, of the clip": ({"kind": "future_latent", "target_sees": "clip", "past": [0.2, 0.8]}, {}),
    "action": ({"kind": "action_latent", "action_size": 3, "state_size": 5}, FROZEN | AS_FILMED),
    "states": (
        {"kind": "states", "targets": {"vx": [0.1, 2.0], "x": [0.5, 0.2]}, "classes": {"shape": 3}},
        AS_FILMED,
    ),
}


def config_of(name: str, **more: Any) -> RunConfig:
    objective, sections = KINDS[name]
    return small_config(objective | more.pop("objective", {}), **{**sections, **more})


def passed(config: RunConfig, batch: Batch) -> tuple[Objective, Encoder, Output]:
    """The objective, a target encoder that would take a gradient, and what a pass gives."""
    objective = make(config)
    target = first_encoder(objective, config).requires_grad_(True)
    return objective, target, objective(batch, objective.targets(target, batch))
