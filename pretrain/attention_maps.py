"""What an encoder's last block attends to, from its queries and keys, beside the fast path that hides it.

Shapes: N tokens of one clip, H heads, d width a head, D width.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pretrain.model.positions import rotate
from pretrain.model.vit import Block, Encoder

MAX_SCORES = 1 << 24  # that are held at a time, 64 MB: beside a training there is little room


class LastAttention:
    """Listens, while it is open, to the last block of an encoder that sees one clip; changes nothing in it.

    Also under ZeRO-3, as it reads what modules were given and gave, never their weights. A block that is
    compiled is computed as it is written meanwhile: its graph passes over who came to listen later.
    """

    def __init__(self, encoder: Encoder) -> None:
        block = encoder.blocks[-1]
        assert isinstance(block, Block)
        self._block, self._compiler = block, block.compiler
        self._handles: list[Any] = []
        self._qkv: Tensor | None = None
        self._table: Tensor | None = None

    def __enter__(self) -> LastAttention:
        self._block.compiler = None
        self._handles = [
            self._block.register_forward_pre_hook(self._note_table),
            self._block.qkv.register_forward_hook(self._note_qkv),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.compiler = self._compiler
        for handle in self._handles:
            handle.remove()

    def _note_table(self, _: Any, given: tuple[Any, ...]) -> None:
        self._table = given[1]

    def _note_qkv(self, _: Any, given: Any, found: Tensor) -> None:
        self._qkv = found.detach()

    def queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """(N, H, d) each, turned by their positions, float32."""
        assert self._qkv is not None, "no clip has been seen"
        q, k, _ = self._qkv.unflatten(-1, (3, self._block.heads, -1)).unbind(-3)
        if self._table is not None:
            q, k = rotate(q, self._table), rotate(k, self._table)
        return q.float(), k.float()

    @torch.no_grad()
    def maps(self, query: int) -> tuple[Tensor, Tensor]:
        """How much each token is attended to (N,): by all tokens on average, and by one; means over heads.

        Each sums to 1.
        """
        q_NHd, k_NHd = self.queries_and_keys()
        by_all = torch.zeros(len(k_NHd), device=k_NHd.device)
        num_rows = max(1, MAX_SCORES // (len(k_NHd) * k_NHd.shape[1]))
        for rows in q_NHd.split(num_rows):
            by_all += _shares(rows, k_NHd).sum(0)
        return by_all / len(q_NHd), _shares(q_NHd[query : query + 1], k_NHd)[0]


def _shares(q_RHd: Tensor, k_NHd: Tensor) -> Tensor:
    """Each query's softmax over the keys, mean over heads: (R, N)."""
    scores_HRN = torch.einsum("rhd,nhd->hrn", q_RHd, k_NHd) / math.sqrt(q_RHd.shape[-1])
    return scores_HRN.softmax(-1).mean(0)
