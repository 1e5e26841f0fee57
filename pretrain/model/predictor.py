"""The predictor: a narrow transformer that fills hidden tokens in from the context's features.

Shapes: S sequences (mask kinds × clips), N tokens a clip, M kept tokens, P hidden tokens, D encoder width,
E predictor width. Every token of a clip is either kept or hidden, so each sequence has exactly N tokens and
the packed row needs neither padding nor sorting: features go to the kept places, mask tokens to the others.
Source: V-JEPA, arXiv:2404.08471, sec. 3.1; V-JEPA 2, arXiv:2506.09985.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config import PredictorConfig
from pretrain.model.attention import Backend, Packing
from pretrain.model.vit import Grid, Transformer


class Predictor(Transformer):
    """Context features and the places of hidden tokens to predicted features."""

    def __init__(
        self,
        config: PredictorConfig,
        encoder_width: int,
        grid: Grid,
        num_mask_kinds: int,
        rope: str,
        backend: Backend = "sdpa",
    ) -> None:
        super().__init__(config.width, config.depth, config.heads, 4.0, grid, rope, backend)
        self.embed = nn.Linear(encoder_width, config.width)
        self.mask_tokens = nn.Parameter(torch.empty(num_mask_kinds, config.width))
        self.out = nn.Linear(config.width, encoder_width)

    def forward(self, context_MD: Tensor, kept_M: Tensor, hidden_P: Tensor, num_sequences: int) -> Tensor:
        """Predicted features (P, D) of the hidden tokens.

        kept_M, hidden_P: sequence * N + token, where sequence = mask kind * clips + clip; together they
        name each place of the S × N once.
        """
        tokens, kinds = self.num_tokens, self.mask_tokens.shape[0]
        each = num_sequences // kinds * tokens
        x = self.mask_tokens.repeat_interleave(each, dim=0)
        x = x.index_copy(0, kept_M, self.embed(context_MD).to(x.dtype))
        positions = torch.arange(tokens, device=x.device).repeat(num_sequences)
        packing = Packing((tokens,) * num_sequences, x.device)
        return self.out(self.run(x, positions, packing)[hidden_P])

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        super().initialise(generator, std)
        nn.init.zeros_(self.mask_tokens)
