"""Masked latent prediction: guess the target encoder's features of hidden tokens from the kept ones.

The loss lives in feature space: L1 to the target's features, layer-normed without affine terms. Each clip
counts the same however many tokens its mask hides, so the loss is the same for any number of ranks; where
all clips hide equally many it is the published mean over tokens.
Source: V-JEPA, arXiv:2404.08471, sec. 3.1.

Shapes: B clips, N tokens a clip, K mask kinds, S = K × B sequences, P hidden tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import MaskedLatentConfig, ModelConfig
from pretrain.model.attention import Backend, Packing
from pretrain.model.predictor import Predictor
from pretrain.model.vit import Encoder, Grid
from pretrain.objective.base import Batch, Output


class MaskedLatent(nn.Module):
    """Context encoder and predictor, trained together."""

    def __init__(self, config: MaskedLatentConfig, model: ModelConfig, grid: Grid, backend: Backend) -> None:
        super().__init__()
        self._init_std = model.init_std
        self.encoder = Encoder(model.encoder, grid, backend)
        self.predictor = Predictor(
            model.predictor, self.encoder.width, grid, len(config.masks), model.encoder.rope, backend
        )

    def initialise(self, seed: int) -> None:
        """Initial weights as published (but for their size, if configured), equal on every rank."""
        generator = torch.Generator().manual_seed(seed)
        self.encoder.initialise(generator, self._init_std)
        self.predictor.initialise(generator, self._init_std)

    def recompute_blocks(self) -> None:
        """Keep no activations inside blocks; compute them again in the backward pass."""
        self.encoder.recompute = self.predictor.recompute = True

    @torch.no_grad()
    def targets(self, target_encoder: Encoder, batch: Batch) -> Tensor:
        """What is to be guessed: features of all tokens (B, N, D), normed, float32, without gradient."""
        features = target_encoder(batch.clips).float()
        return F.layer_norm(features, features.shape[-1:])

    def forward(self, batch: Batch, targets: Tensor) -> Output:
        masks = batch.masks
        source_M = masks.source(masks.kept_M)
        packing = Packing(masks.kept_lengths, source_M.device)
        context_MD = self.encoder.encode_kept(batch.clips, source_M, packing)
        prediction_PD = self.predictor(context_MD, masks.kept_M, masks.hidden_P, masks.num_sequences)

        source_P = masks.source(masks.hidden_P)
        wanted_PD = targets.flatten(0, 1)[source_P]
        error_P = (prediction_PD.float() - wanted_PD).abs().mean(-1)
        sequence_P = masks.hidden_P // masks.num_tokens
        hidden_S = torch.tensor(masks.hidden_lengths, device=error_P.device)
        error_S = error_P.new_zeros(masks.num_sequences).index_add(0, sequence_P, error_P) / hidden_S
        kind_losses = error_S.view(masks.num_kinds, masks.num_clips).mean(1)
        return Output(
            loss=kind_losses.mean(),
            kind_losses=kind_losses.detach(),
            context_MD=context_MD.detach(),
            context_M=source_M % masks.num_tokens,
            prediction_PD=prediction_PD.detach(),
            hidden_P=source_P % masks.num_tokens,
        )
