"""The predictor: a narrow transformer that fills hidden tokens in from the context's features.

Shapes: S sequences (mask kinds × clips), N tokens a clip, M kept tokens, P hidden tokens, D width of what
comes in and goes out (of all levels together), E predictor width.
Source: V-JEPA, arXiv:2404.08471, sec. 3.1; V-JEPA 2, arXiv:2506.09985; V-JEPA 2.1, arXiv:2603.14482.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config import EncoderConfig, PredictorConfig
from pretrain.masks import Masks
from pretrain.model.attention import Backend, Packing
from pretrain.model.linear import Linear
from pretrain.model.positions import Grid
from pretrain.model.vit import Modalities, Transformer, rows_of


class Predictor(Transformer):
    """Context features and the places of hidden tokens to what is predicted of those.

    out_width: of a prediction. says_context: predicts the context's tokens too, by a head of their own.
    """

    def __init__(
        self,
        config: PredictorConfig,
        encoder: EncoderConfig,
        grid: Grid,
        num_mask_kinds: int,
        out_width: int | None = None,
        backend: Backend = "sdpa",
        *,
        says_context: bool = False,
    ) -> None:
        super().__init__(
            config.width, config.depth, config.heads, 4.0, grid, encoder.rope, backend,
            rope_span=encoder.rope_span,
        )  # fmt: skip
        width = encoder.shape[0]
        out_width = out_width or width * encoder.num_levels
        self.embed: nn.Module = Linear(width, config.width)
        if encoder.num_levels > 1:
            wide = Linear(width * encoder.num_levels, width)
            self.embed = nn.Sequential(wide, nn.GELU(), Linear(width, config.width))
        self.mask_tokens = nn.Parameter(torch.empty(config.mask_tokens or num_mask_kinds, config.width))
        self.modalities = Modalities(config.width) if encoder.pictures == "own" else None
        self.out = Linear(config.width, out_width)
        self.out_context = Linear(config.width, out_width) if says_context else None

    def forward(self, context_MD: Tensor, masks: Masks) -> tuple[Tensor, Tensor | None]:
        """Predictions (P, D) of the hidden tokens; and (M, D) of the kept ones, where it says them."""
        kept, hidden, rank_T = masks.kept, masks.hidden, masks.rank_T
        tokens = torch.cat([kept.token, hidden.token])
        kinds_P = masks.kinds_S[hidden.sequence] % len(self.mask_tokens)
        hidden_PE = rows_of(self.mask_tokens, kinds_P)
        x = torch.cat([self.embed(context_MD).to(hidden_PE.dtype), hidden_PE])
        if (added_NE := self.positions(self.grid, x.device)) is not None:
            x = x + added_NE.to(x.dtype)[tokens]
        if self.modalities is not None:
            x = self.modalities(x, masks.is_still_S[torch.cat([kept.sequence, hidden.sequence])])
        lengths = [a + b for a, b in zip(kept.lengths, hidden.lengths, strict=True)]
        packing = Packing(lengths, x.device, lengths_S=masks.lengths_S)
        in_order = torch.empty_like(tokens).index_copy(0, rank_T, tokens)
        x = self.run(torch.empty_like(x).index_copy(0, rank_T, x), in_order, packing)
        at_kept, at_hidden = rank_T.split([len(kept.places), len(hidden.places)])
        said = self.out(x.index_select(0, at_hidden))
        return said, None if self.out_context is None else self.out_context(x.index_select(0, at_kept))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        super().initialise(generator, std)
        nn.init.zeros_(self.mask_tokens)
