"""Self-attention over packed sequences: many clips in one row of tokens, none of which sees another.

Shapes: S sequences, M tokens of all sequences together, L tokens of the longest, H heads, d width a head.
xformers takes the packed row as it is (block-diagonal mask); SDPA gets equal lengths as a plain batch, and
unequal ones laid out (S, L) for the attention alone, so that every linear layer still works on M tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import UsageError

log = logging.getLogger(__name__)

Backend = Literal["xformers", "sdpa"]


class Packing:
    """How M tokens fall into sequences of the given lengths, one after the other.

    frame: tokens of a moment, where a token must see those of its own moment and of earlier ones only; the
    sequences are then equally long. lengths_S: the lengths on the device, where they are there already; else
    they are brought there when they are needed, and the host waits for that.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        frame: int | None = None,
        lengths_S: Tensor | None = None,
    ) -> None:
        self.lengths = tuple(lengths)
        self.frame = frame
        self.device = torch.device(device)
        self.total = sum(self.lengths)
        self.longest = max(self.lengths)
        self.is_uniform = min(self.lengths) == self.longest
        self._lengths_S = lengths_S

    @cached_property
    def lengths_S(self) -> Tensor:
        """The lengths, on the device (S,)."""
        if self._lengths_S is None:
            return torch.tensor(self.lengths, device=self.device)
        return self._lengths_S

    @cached_property
    def slots_M(self) -> Tensor:
        """Where each token lies when sequences are laid out (S, L) and flattened."""
        rows_S = torch.arange(len(self.lengths), device=self.device)
        shift_S = rows_S * self.longest - torch.cumsum(self.lengths_S, 0) + self.lengths_S
        shift_M = torch.repeat_interleave(shift_S, self.lengths_S, output_size=self.total)
        return torch.arange(self.total, device=self.device) + shift_M

    @cached_property
    def filled_SL(self) -> Tensor:
        """True where the (S, L) layout holds a token."""
        return torch.arange(self.longest, device=self.device)[None] < self.lengths_S[:, None]

    @cached_property
    def seen_LL(self) -> Tensor | None:
        """True where a token (row) may see another (column) of its sequence; None where it sees all."""
        if self.frame is None:
            return None
        with torch.inference_mode(False):  # it may be kept for a step that goes backward
            moment = torch.arange(self.longest, device=self.device) // self.frame
            return moment[:, None] >= moment[None]

    @cached_property
    def block_diagonal(self) -> Any:
        """xformers' mask for this packing."""
        from xformers.ops.fmha.attn_bias import BlockDiagonalMask

        with torch.inference_mode(False):  # as above
            return BlockDiagonalMask.from_seqlens(list(self.lengths), device=self.device)


@lru_cache(maxsize=16)
def equal_packing(count: int, length: int, device: torch.device, frame: int | None = None) -> Packing:
    """`count` sequences of one length, kept with what it has worked out."""
    return Packing((length,) * count, device, frame=frame)


def attend(q_MHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, packing: Packing, backend: Backend) -> Tensor:
    """Softmax attention inside each sequence of `packing`; (M, H, d) in, (M, H, d) out."""
    if backend == "xformers" and packing.frame is None:
        from xformers.ops import memory_efficient_attention

        mask = None if len(packing.lengths) == 1 else packing.block_diagonal
        out = memory_efficient_attention(q_MHd[None], k_MHd[None], v_MHd[None], attn_bias=mask)
        return out[0]

    assert packing.is_uniform or packing.frame is None, "moments are of equally long sequences"
    _, heads, width = q_MHd.shape
    rows, longest = len(packing.lengths), packing.longest

    def lay_out(x_MHd: Tensor) -> Tensor:
        if not packing.is_uniform:
            padded = x_MHd.new_zeros(rows * longest, heads, width)
            x_MHd = padded.index_copy(0, packing.slots_M, x_MHd)
        return x_MHd.view(rows, longest, heads, width).transpose(1, 2)

    mask = packing.seen_LL if packing.is_uniform else packing.filled_SL[:, None, None, :]
    out = F.scaled_dot_product_attention(lay_out(q_MHd), lay_out(k_MHd), lay_out(v_MHd), attn_mask=mask)
    out = out.transpose(1, 2).reshape(rows * longest, heads, width)
    return out if packing.is_uniform else out[packing.slots_M]


@cache
def choose_backend(wanted: str, device_type: str, dtype: torch.dtype, head_width: int) -> Backend:
    """The attention to use, found out by one small forward and backward on the device.

    wanted: auto | xformers | sdpa. `auto` falls back to SDPA and logs why.
    Raises: UsageError when xformers was asked for by name and does not work here.
    """
    if wanted == "sdpa" or (wanted == "auto" and device_type != "cuda"):
        return "sdpa"
    reason = probe_xformers(device_type, dtype, head_width)
    if reason is None:
        log.info("attention: xformers (forward and backward probed on %s, %s)", device_type, dtype)
        return "xformers"
    if wanted == "xformers":
        raise UsageError(
            f"model.attention is xformers, which does not work here: {reason}; set "
            f"model.attention=auto, which then takes SDPA"
        )
    log.warning("attention: SDPA, because xformers does not work here: %s", reason)
    return "sdpa"


def probe_xformers(device_type: str, dtype: torch.dtype, head_width: int) -> str | None:
    """None when xformers attends over a packed row, forward and backward; else why not."""
    packing = Packing((5, 3, 8), device_type)
    q = torch.randn(16, 2, head_width, device=device_type, dtype=dtype, requires_grad=True)
    try:
        attend(q, q, q, packing, "xformers").sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
