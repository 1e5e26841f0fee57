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
    """What one pass over a masked batch gave. source_M, source_P: clip * N + token of kept and hidden."""

    context_MD: Tensor
    prediction_PO: Tensor
    prediction_MO: Tensor | None
    source_M: Tensor
    source_P: Tensor


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
        source_M, source_P = masks.source(masks.kept_M), masks.source(masks.hidden_P)
        packing = Packing(masks.kept_lengths, source_M.device)
        context_MD = self.encoder(batch.clips, source_M, packing, masks.pictures, all_levels=True)
        prediction_PO, prediction_MO = self.predictor(context_MD, masks)
        return Passed(context_MD, prediction_PO, prediction_MO, source_M, source_P)

    def regularised(self, batch: Batch, passed: Passed) -> dict[str, Tensor]:
        """The losses of the configured regularisers by name, on the last level of the context's features."""
        last_MD = passed.context_MD[:, -self.encoder.width :]
        return regularise(self._regularisers, last_MD, batch.masks, self._seed, batch.step)

    def seen(self, batch: Batch, passed: Passed, wanted_BND: Tensor | None) -> dict[str, Seen]:
        """What health looks at; of features of several levels the last."""
        tokens, width = batch.masks.num_tokens, self.encoder.width
        found = {
            "context": Seen(passed.context_MD[:, -width:].detach(), passed.source_M % tokens),
            "prediction": Seen(passed.prediction_PO[:, -width:].detach(), passed.source_P % tokens),
        }
        if wanted_BND is not None:
            source = self._present(batch)[0]
            features = wanted_BND.flatten(0, 1)[source, -width:].detach()
            found["target"] = Seen(features, source % tokens)
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
            passed.source_P,
            passed.source_P % masks.num_tokens,
            loss_of,
            lambda: truth[passed.source_M[nearest_kept(masks, self.encoder.grid)]],
        )

    def read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """Features of all tokens (B, N, L D), each level normed; zeros where a picture has no token."""
        clips, pictures = len(batch.clips), batch.masks.pictures
        source, packing = self._present(batch)
        features = encoder(batch.clips, source, packing, pictures, all_levels=True)
        wanted = normed(features, self.num_levels)
        if packing.total == clips * batch.masks.num_tokens:
            return wanted.unflatten(0, (clips, -1))
        whole = wanted.new_zeros(clips * batch.masks.num_tokens, wanted.shape[-1])
        return whole.index_copy(0, source, wanted).unflatten(0, (clips, -1))

    def _present(self, batch: Batch) -> tuple[Tensor, Packing]:
        """clip * N + token of all tokens there are, a clip a sequence; a picture may have one frame's."""
        tokens, device = batch.masks.num_tokens, batch.clips.device
        frame = tokens // self.encoder.grid[0]
        lengths = [frame if is_picture else tokens for is_picture in batch.masks.pictures]
        starts = [torch.arange(length, device=device) + tokens * clip for clip, length in enumerate(lengths)]
        return torch.cat(starts), Packing(lengths, device)
