"""InfoNCE: a hidden token's target feature has to be found among those of others, the arm to compare with.

The same encoder, masks, predictor and targets as the latent objective; the prediction of a hidden token
should be nearer to its own target than to those of other places and other clips of the forward.
Source: contrastive predictive coding, arXiv:1807.03748, eq. 4; dense: DPC, arXiv:1909.04656.

Shapes: B clips, N tokens a clip, P hidden tokens, Q of them told apart, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import ContrastiveConfig
from pretrain.model.attention import Backend
from pretrain.model.positions import Grid
from pretrain.objective.base import Batch, Output
from pretrain.objective.hidden import HiddenObjective


class Contrastive(HiddenObjective):
    """Context encoder and predictor, trained to tell targets apart."""

    def __init__(
        self,
        config: ContrastiveConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        super().__init__(config, model, target, grid, backend, seed)
        self._temperature, self._tokens = config.temperature, config.tokens

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        passed = self.predict(batch)
        wanted_BND = self.wanted(batch, targets)
        source_P = batch.masks.hidden.source
        total = len(source_P)
        spread = torch.arange(min(total, self._tokens), device=source_P.device)
        chosen_Q = (spread + 0.5).mul(total / len(spread)).long()
        source_Q, flat = source_P[chosen_Q], wanted_BND.flatten(0, 1)
        wanted_QD = flat[source_Q]

        def told_apart(prediction_PD: Tensor) -> tuple[Tensor, Tensor]:
            return info_nce(prediction_PD[chosen_Q], wanted_QD, source_Q, self._temperature)

        loss, found = told_apart(passed.prediction_PO)
        parts = {"info_nce": loss.detach(), "found": found}
        for name, term in self.regularised(batch, passed).items():
            loss, parts[name] = loss + term, term.detach()
        guess = self.guess(passed, batch.masks, flat[source_P], flat, lambda p_PD: told_apart(p_PD)[0])
        return Output(loss, parts, self.seen(batch, passed, wanted_BND), guess)


def info_nce(
    prediction_QD: Tensor, wanted_QD: Tensor, source_Q: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The cross entropy of finding each prediction's own target among all, and the share that is found.

    source_Q: clip * N + token; a target of the same token, hidden by another mask kind too, is no other.
    """
    logits_QQ = F.normalize(prediction_QD.float(), dim=-1) @ F.normalize(wanted_QD.float(), dim=-1).T
    logits_QQ = logits_QQ / temperature
    own = torch.arange(len(source_Q), device=source_Q.device)
    is_twin = (source_Q[:, None] == source_Q[None]) & (own[:, None] != own[None])
    logits_QQ = logits_QQ.masked_fill(is_twin, -torch.inf)
    return F.cross_entropy(logits_QQ, own), (logits_QQ.detach().argmax(1) == own).float().mean()
