"""What the objectives over masked clips share: the kept tokens encoded, the hidden ones predicted.

Shapes: M kept tokens, P hidden tokens, D width of all levels together, O width of a prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import MaskedSection
from pretrain.masks import Masks
from pretrain.model.attention import Backend, Packing
from pretrain.model.positions import Grid
from pretrain.model.predictor import Predictor
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Seen, normed
from pretrain.objective.guess import Guess, nearest_kept
from pretrain.objective.regularise import regularise


class Passed(NamedTuple):
    """What one pass over a masked batch gave."""

    context_MD: Tensor
    prediction_PO: Tensor
    prediction_MO: Tensor | None


class HiddenObjective(Objective):
    """Context encoder and predictor, trained together."""

    encoder: Encoder

    def __init__(
        self,
        config: MaskedSection,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
        *,
        out_width: int | None = None,
        says_context: bool = False,
    ) -> None:
        super().__init__(model, target)
        kinds = len(config.masks) + (len(config.picture_masks) if model.encoder.pictures == "own" else 0)
        self._regularisers, self._seed = config.regularisers, seed
        self.num_levels = model.encoder.num_levels
        self.encoder = Encoder(model.encoder, grid, backend)
        self.predictor = Predictor(
            model.predictor, model.encoder, grid, kinds, out_width, backend, says_context=says_context
        )

    def predict(self, batch: Batch) -> Passed:
        """One encoder pass over the kept tokens of all mask kinds, one predictor pass over all."""
        masks = batch.masks
        source_M, lengths_S = masks.kept.source, masks.kept.lengths_S
        packing = Packing(masks.kept_lengths, source_M.device, lengths_S=lengths_S)
        context_MD = self.encoder(batch.clips, source_M, packing, masks.stills, all_levels=True)
        return Passed(context_MD, *self.predictor(context_MD, masks))

    def regularised(self, batch: Batch, passed: Passed) -> dict[str, Tensor]:
        """The losses of the configured regularisers by name, on the last level of the context's features."""
        last_MD = passed.context_MD[:, -self.encoder.width :]
        return regularise(self._regularisers, last_MD, batch.masks, self._seed, batch.step)

    def seen(self, batch: Batch, passed: Passed, wanted_BND: Tensor | None) -> dict[str, Seen]:
        """What health looks at; of features of several levels the last."""
        masks, width = batch.masks, self.encoder.width
        found = {
            "context": Seen(passed.context_MD[:, -width:].detach(), masks.kept.token),
            "prediction": Seen(passed.prediction_PO[:, -width:].detach(), masks.hidden.token),
        }
        if wanted_BND is not None:
            features_XD, token_X = wanted_BND.flatten(0, 1)[:, -width:].detach(), _all_tokens(wanted_BND)
            if any(masks.pictures):
                source = self._present(masks)[0]
                features_XD, token_X = features_XD[source], token_X[source]
            found["target"] = Seen(features_XD, token_X)
        return found

    def guess(
        self,
        passed: Passed,
        masks: Masks,
        wanted_PO: Tensor,
        truth_XO: Tensor,
        loss_of: Callable[[Tensor], Tensor],
    ) -> Guess:
        """truth_XO: what every token of the batch would have been asked for, by clip * N + token."""
        wanted, truth = wanted_PO.detach(), truth_XO.detach()
        return Guess(
            passed.prediction_PO.detach().float(),
            wanted,
            masks.hidden.source,
            masks.hidden.token,
            loss_of,
            lambda: truth[masks.kept.source[nearest_kept(masks, self.encoder.grid)]],
        )

    def read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """Features of all tokens (B, N, L D), each level normed; zeros where a picture has no token."""
        clips, masks = len(batch.clips), batch.masks
        if not any(masks.pictures):
            return normed(encoder(batch.clips, all_levels=True), self.num_levels)
        source, packing = self._present(masks)
        wanted = normed(encoder(batch.clips, source, packing, masks.stills, all_levels=True), self.num_levels)
        whole = wanted.new_zeros(clips * masks.num_tokens, wanted.shape[-1])
        return whole.index_copy(0, source, wanted).unflatten(0, (clips, -1))

    def _present(self, masks: Masks) -> tuple[Tensor, Packing]:
        """clip * N + token of all tokens there are, a clip a sequence; a picture has those of one frame."""
        tokens, stills = masks.num_tokens, masks.stills
        frame, device = tokens // self.encoder.grid[0], stills.is_still_B.device
        lengths_B = tokens - stills.is_still_B * (tokens - frame)
        lengths = [frame if is_picture else tokens for is_picture in masks.pictures]
        packing = Packing(lengths, device, lengths_S=lengths_B)
        if not packing.is_uniform:
            return packing.slots_M, packing  # of clips the longest are whole
        starts_B = torch.arange(masks.num_clips, device=device) * tokens
        return (starts_B[:, None] + torch.arange(packing.longest, device=device)).flatten(), packing


def _all_tokens(features_BND: Tensor) -> Tensor:
    """The token that each feature of whole clips is of (B N,)."""
    clips, tokens = features_BND.shape[:2]
    return torch.arange(tokens, device=features_BND.device).repeat(clips)
