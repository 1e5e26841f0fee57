"""The essay's picture: an x-encoder sees the past, a y-encoder the future, a predictor guesses y from x.

The predictor sees x's features moment by moment, mask tokens for the moments to come, and the actions; no
moment sees later ones. The loss is L1 to y's layer-normed features: it lives in feature space, and what of
the future has no cause in the past or in the actions is not asked for exactly.
Source: JEPA, LeCun 2022, openreview BZ5a1r-kVsf, sec. 4.4; predictor: V-JEPA 2, arXiv:2506.09985, sec. 3.1.

Shapes: B clips, t tubelets, P patches a tubelet, M tokens of the past, F of the future, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import FutureLatentConfig
from pretrain.model.actions import ActionPredictor
from pretrain.model.attention import Backend, Packing
from pretrain.model.positions import Grid
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Output, Seen, l1_of, normed
from pretrain.objective.guess import Guess, nearest_kept
from pretrain.objective.regularise import regularise


class FutureLatent(Objective):
    """x-encoder and predictor; the target encoder is y's."""

    encoder: Encoder

    def __init__(
        self,
        config: FutureLatentConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        super().__init__(model, target)
        self._config, self._seed = config, seed
        self.encoder = Encoder(model.encoder, grid, backend)
        each = config.action_size * model.encoder.tubelet
        self.predictor = ActionPredictor(
            model.predictor, model.encoder, grid, each, 0, backend, has_mask_token=True
        )

    def read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """y: the features of the future's tokens (F, D), normed."""
        masks = batch.masks
        source_F = masks.hidden.source
        if self._config.target_sees == "future":
            packing = Packing(masks.hidden_lengths, source_F.device, lengths_S=masks.hidden.lengths_S)
            return normed(encoder(batch.clips, source_F, packing))
        return normed(encoder(batch.clips).flatten(0, 1)[source_F])

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        masks, (moments, rows, columns) = batch.masks, self.encoder.grid
        kept, source_M, source_F = masks.kept, masks.kept.source, masks.hidden.source
        packing = Packing(kept.lengths, source_M.device, lengths_S=kept.lengths_S)
        context_MD = self.encoder(batch.clips, source_M, packing)
        width = self.encoder.width
        whole = context_MD.new_zeros(masks.num_clips * masks.num_tokens, width)
        x_BtPD = whole.index_copy(0, source_M, context_MD).view(-1, moments, rows * columns, width)
        past_B = kept.lengths_S // (rows * columns)
        is_known_Bt = torch.arange(moments, device=x_BtPD.device)[None] < past_B[:, None]
        said_BtPD = self.predictor(x_BtPD, self._actions(batch, moments), None, is_known_Bt)
        said_FD = said_BtPD.reshape(-1, width)[source_F]

        wanted_FD = self.wanted(batch, targets)
        loss = l1_of(said_FD, wanted_FD, masks)
        parts = {"future": loss.detach()}
        for name, term in regularise(
            self._config.regularisers, context_MD, masks, self._seed, batch.step
        ).items():
            loss, parts[name] = loss + term, term.detach()
        token_F = masks.hidden.token
        seen = {
            "context": Seen(context_MD.detach(), kept.token),
            "prediction": Seen(said_FD.detach(), token_F),
            "target": Seen(wanted_FD.detach(), token_F),
        }
        truth, context = wanted_FD.detach(), context_MD.detach()  # y has not read the past
        guess = Guess(
            said_FD.detach().float(),
            truth,
            source_F,
            token_F,
            lambda p_FD: l1_of(p_FD, truth, masks),
            lambda: normed(context)[nearest_kept(masks, self.encoder.grid)],
        )
        return Output(loss, parts, seen, guess)

    def _actions(self, batch: Batch, moments: int) -> Tensor | None:
        """The actions of each tubelet's frames, side by side (B, t, tubelet * A)."""
        if not self._config.action_size:
            return None
        return (
            given(batch.actions, "actions", self._config.action_size).unflatten(1, (moments, -1)).flatten(2)
        )


def given(values: Tensor | None, what: str, size: int) -> Tensor:
    """Actions or states (B, T, size) of a batch. Raises: DataError when the data has none of that size."""
    if values is None or values.shape[-1] != size:
        found = "none for every clip" if values is None else f"{values.shape[-1]}"
        raise DataError(
            f"objective.{what.removesuffix('s')}_size is {size}, and the data's {what} have {found}: set it "
            f"to what the data set's dataset.json names, or shard it with a sidecar of {what}"
        )
    return values
