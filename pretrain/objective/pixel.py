"""Masked autoencoding: the pixels of hidden tokens, the arm to compare with.

The same encoder, masks and predictor as the latent objective, asked for pixels: their squared error, each
token's normalised by its own mean and deviation, colour by colour.
Source: VideoMAE, arXiv:2203.12602; MAE, arXiv:2111.06377, sec. 3.

Shapes: B clips, N tokens a clip, M kept tokens, P hidden tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import PixelConfig
from pretrain.model.attention import Backend
from pretrain.model.positions import Grid
from pretrain.model.vit import Encoder, tubelet_pixels
from pretrain.objective.base import Batch, Output, by_kind, mean_over_clips
from pretrain.objective.hidden import HiddenObjective


class Pixel(HiddenObjective):
    """Context encoder and predictor, trained on pixels."""

    def __init__(
        self,
        config: PixelConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        encoder = model.encoder
        pixels = 3 * encoder.tubelet * encoder.patch**2
        super().__init__(config, model, target, grid, backend, seed, out_width=pixels)
        self._normalise = config.normalise

    def targets(self, target_encoder: Encoder, batch: Batch) -> None:
        """None: pixels are read off the batch, and no target encoder is run."""

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        masks, passed = batch.masks, self.predict(batch)
        wanted_BNO = pixels_of(batch.clips, self.encoder, normalise=self._normalise)
        truth = wanted_BNO.flatten(0, 1)
        wanted_PO = truth[masks.hidden.source]

        def error_of(prediction_PO: Tensor) -> tuple[Tensor, Tensor]:
            error_P = F.mse_loss(prediction_PO.float(), wanted_PO, reduction="none").mean(-1)
            return mean_over_clips(error_P, masks.hidden, masks)

        loss, error_S = error_of(passed.prediction_PO)
        parts = by_kind(error_S, masks)
        for name, term in self.regularised(batch, passed).items():
            loss, parts[name] = loss + term, term.detach()
        guess = self.guess(passed, masks, wanted_PO, truth, lambda p_PO: error_of(p_PO)[0])
        return Output(loss, parts, self.seen(batch, passed, None), guess)


def pixels_of(clips_BCTHW: Tensor, encoder: Encoder, *, normalise: bool) -> Tensor:
    """Each token's pixels (B, N, C * tubelet * patch * patch), float32; normalised over each colour."""
    pixels = tubelet_pixels(clips_BCTHW.float(), encoder.tubelet, encoder.patch)
    if not normalise:
        return pixels
    colours = pixels.unflatten(-1, (3, -1))
    mean, std = colours.mean(-1, keepdim=True), colours.std(-1, keepdim=True)
    return ((colours - mean) / (std + 1e-6)).flatten(-2)
