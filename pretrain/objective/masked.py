"""Masked latent prediction: guess the target encoder's features of hidden tokens from the kept ones.

The loss lives in feature space: L1 to the target's features, layer-normed without affine terms. Each clip
counts the same however many tokens its mask hides, so the loss is the same for any number of ranks; where
all clips hide equally many it is the published mean over tokens. V-JEPA 2.1 adds features of several levels,
and a smaller loss on the tokens that are seen.
Source: V-JEPA, arXiv:2404.08471, sec. 3.1; V-JEPA 2.1, arXiv:2603.14482, eq. 1 to 3.

Shapes: B clips, N tokens a clip, S sequences (a clip under a mask kind), M kept, P hidden tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.config import MaskedLatentConfig, ModelConfig, TargetConfig
from pretrain.config.objective import ContextLossConfig
from pretrain.masks import Masks
from pretrain.model.attention import Backend
from pretrain.model.positions import Grid
from pretrain.objective.base import Batch, Output, by_kind, l1_of, mean_over_clips
from pretrain.objective.guess import placed
from pretrain.objective.hidden import HiddenObjective


class MaskedLatent(HiddenObjective):
    """Context encoder and predictor, trained on the target's features."""

    def __init__(
        self,
        config: MaskedLatentConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        super().__init__(
            config, model, target, grid, backend, seed, says_context=config.context_loss is not None
        )
        self._context_loss = config.context_loss

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        masks, passed = batch.masks, self.predict(batch)
        wanted_BND = self.wanted(batch, targets)
        flat = wanted_BND.flatten(0, 1)
        wanted_PO = flat[masks.hidden.source]
        error_P = (passed.prediction_PO.float() - wanted_PO).abs().mean(-1)
        loss, error_S = mean_over_clips(error_P, masks.hidden, masks)
        parts = by_kind(error_S, masks)
        if self._context_loss is not None and passed.prediction_MO is not None:
            error_M = (passed.prediction_MO.float() - flat[masks.kept.source]).abs().mean(-1)
            weight_M = context_weights(self._context_loss, masks, self.encoder.grid, batch.step)
            context, _ = mean_over_clips(error_M * weight_M, masks.kept, masks)
            loss, parts["context"] = loss + context, context.detach()
        for name, term in self.regularised(batch, passed).items():
            loss, parts[name] = loss + term, term.detach()
        guess = self.guess(passed, masks, wanted_PO, flat, lambda p_PO: l1_of(p_PO, wanted_PO, masks))
        return Output(loss, parts, self.seen(batch, passed, wanted_BND), guess)


def context_weights(config: ContextLossConfig, masks: Masks, grid: Grid, step: int) -> Tensor:
    """What the error of each kept token counts (M,), at the step that follows `step` finished ones."""
    begin, end = config.warmup
    rise = 1.0 if step >= end else max(0.0, (step - begin) / (end - begin))
    of_picture = config.weight if config.picture_weight is None else config.picture_weight
    weight_S = rise * torch.where(masks.is_still_S == 1, of_picture, config.weight)
    weight_M = weight_S[masks.kept.sequence]
    return weight_M / distances(masks, grid).sqrt() if config.by_distance else weight_M


def distances(masks: Masks, grid: Grid) -> Tensor:
    """From each kept token to the nearest hidden one of its sequence, in tokens of the 3D grid (M,)."""
    kept = placed(masks.kept_M, masks.num_tokens, grid).split(masks.kept_lengths)
    hidden = placed(masks.hidden_P, masks.num_tokens, grid).split(masks.hidden_lengths)
    return torch.cat([torch.cdist(a, b).amin(1) for a, b in zip(kept, hidden, strict=True)])
