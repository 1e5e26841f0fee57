"""The objective that a config names, and the encoders beside it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from pretrain.config import RunConfig
from pretrain.model.attention import Backend
from pretrain.model.vit import Encoder
from pretrain.objective.action import ActionLatent
from pretrain.objective.base import Objective
from pretrain.objective.contrastive import Contrastive
from pretrain.objective.future import FutureLatent
from pretrain.objective.masked import MaskedLatent
from pretrain.objective.pixel import Pixel
from pretrain.objective.states import States

OBJECTIVES: dict[str, Any] = {
    "masked_latent": MaskedLatent,
    "future_latent": FutureLatent,
    "action_latent": ActionLatent,
    "pixel": Pixel,
    "contrastive": Contrastive,
    "states": States,
}


def build_objective(config: RunConfig, backend: Backend = "sdpa") -> Objective:
    """The objective without its weights drawn, on the default device."""
    made: Objective = OBJECTIVES[config.objective.kind](
        config.objective, config.model, config.target, config.grid, backend, config.seed
    )
    return made


def make_objective(config: RunConfig, backend: Backend = "sdpa") -> Objective:
    """The objective with its initial weights, on CPU in float32; equal wherever it is made."""
    made = build_objective(config, backend)
    made.initialise(config.seed)
    return made


def shapes_of(config: RunConfig) -> tuple[Objective, Encoder]:
    """The objective and its encoder, or the one beside it where it has none: names and shapes, no memory."""
    with torch.device("meta"):
        made = build_objective(config)
        return made, made.encoder or Encoder(config.model.encoder, config.grid)


def first_encoder(objective: Objective, config: RunConfig, backend: Backend = "sdpa") -> Encoder:
    """A copy of the objective's encoder before any step, without gradient; a new one where it has none."""
    if objective.encoder is not None:
        encoder = copy.deepcopy(objective.encoder)
        encoder.recompute(0)
    else:
        encoder = Encoder(config.model.encoder, config.grid, backend)
        encoder.initialise(torch.Generator().manual_seed(config.seed), config.model.init_std)
    return encoder.eval().requires_grad_(False)
