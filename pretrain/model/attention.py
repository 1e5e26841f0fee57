"""Self-attention over packed sequences: many clips in one row of tokens, none of which sees another.

Shapes: S sequences, M tokens of all sequences together, L tokens of the longest, H heads, d width a head.
xformers and torch's own varlen take the packed row as it is; so does a loop over the sequences. SDPA gets
equal lengths as a plain batch, and unequal ones laid out (S, L) for the attention alone, so that every linear
layer still works on M tokens. Which of them is used: pretrain/model/choose.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import cache, cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, files
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal[
    "xformers",  # the operator that xformers itself finds best
    "xformers_flash",
    "xformers_efficient",
    "varlen",  # torch's flash attention over a packed row
    "sdpa",  # the kernel that torch itself finds best
    "sdpa_flash",  # of equally long sequences only, as are the next two; else as sdpa
    "sdpa_cudnn",
    "sdpa_efficient",
    "segments",  # SDPA, sequence after sequence; those of one length that follow each other at once
]
KERNELS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CUDA_12 = "nvidia-cuda-runtime-cu12"  # the package
# Below, the calls of a loop over sequences cost what laying them out does (benchmarks/attention.py).
LONG_ENOUGH = 32


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
    def runs(self) -> tuple[tuple[int, int], ...]:
        """How many sequences of one length follow each other, and that length, from the first to the last."""
        return tuple((len(list(same)), length) for length, same in groupby(self.lengths))

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
    def bounds_S1(self) -> Tensor:
        """Where each sequence begins in the row, and where the last ends: int32, as kernels want it."""
        with torch.inference_mode(False):  # it may be kept for a step that goes backward
            return F.pad(torch.cumsum(self.lengths_S, 0), (1, 0)).to(torch.int32)

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
    """Softmax attention inside each sequence of `packing`; (M, H, d) in, (M, H, d) out.

    Where moments must not see later ones it is SDPA with a mask, whatever `backend` is.
    """
    if packing.frame is None:
        if backend.startswith("xformers"):
            return _by_xformers(q_MHd, k_MHd, v_MHd, packing, backend)
        if backend == "varlen":
            return _by_varlen(q_MHd, k_MHd, v_MHd, packing)
        if loops(backend, packing.longest, is_uniform=packing.is_uniform):
            return _by_segments(q_MHd, k_MHd, v_MHd, packing)
    return _laid_out(q_MHd, k_MHd, v_MHd, packing, backend)


def loops(backend: str, longest: int, *, is_uniform: bool) -> bool:
    """Whether attention goes sequence by sequence: equal ones are a plain batch, short ones laid out."""
    return backend == "segments" and not is_uniform and longest >= LONG_ENOUGH


@cache
def with_cuda_12() -> None:
    """Have libcudart.so.12 at hand, where it is installed as a package: xformers' wheel is linked to it.

    torch's own wheels are of CUDA 13 and bring that alone. Both runtimes share the device's one context.
    """
    with suppress(PackageNotFoundError, OSError):
        for file in files(CUDA_12) or ():
            if file.name == "libcudart.so.12":
                ctypes.CDLL(str(file.locate()))


def why_xformers_does_not_load() -> str | None:
    """In a line, where it or its kernels are not at hand."""
    with_cuda_12()
    try:
        from xformers import _cpp_lib
    except ImportError as missing:
        return str(missing)
    error: BaseException | None = _cpp_lib._cpp_library_load_exception
    if error is None:
        return None
    while error.__cause__ is not None:
        error = error.__cause__
    return f"its kernels do not load: {error or type(error).__name__}"


def _by_xformers(q: Tensor, k: Tensor, v: Tensor, packing: Packing, backend: Backend) -> Tensor:
    reason = why_xformers_does_not_load()
    if reason is not None:
        raise ImportError(reason)
    from xformers.ops import fmha, memory_efficient_attention

    op = None
    if backend == "xformers_flash":
        op = (fmha.flash.FwOp, fmha.flash.BwOp)
    elif backend == "xformers_efficient":
        op = (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
    mask = None if len(packing.lengths) == 1 else packing.block_diagonal
    out: Tensor = memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask, op=op)
    return out[0]


def _by_varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = packing.bounds_S1, packing.longest
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest)
    assert isinstance(out, Tensor), "nothing else is asked for"
    return out


def _by_segments(q_MHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, packing: Packing) -> Tensor:
    """Masks cut to one length a kind make a run of each kind; others are as many runs as sequences."""
    sizes = [count * length for count, length in packing.runs]
    of_each = (x_MHd.split(sizes) for x_MHd in (q_MHd, k_MHd, v_MHd))
    outs = []
    for (count, length), *run in zip(packing.runs, *of_each, strict=True):
        q, k, v = (x_MHd.unflatten(0, (count, length)).transpose(1, 2) for x_MHd in run)
        outs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def _laid_out(q: Tensor, k: Tensor, v: Tensor, packing: Packing, backend: Backend) -> Tensor:
    assert packing.is_uniform or packing.frame is None, "moments are of equally long sequences"
    _, heads, width = q.shape
    rows, longest = len(packing.lengths), packing.longest

    def lay_out(x_MHd: Tensor) -> Tensor:
        if not packing.is_uniform:
            padded = x_MHd.new_zeros(rows * longest, heads, width)
            x_MHd = padded.index_copy(0, packing.slots_M, x_MHd)
        return x_MHd.view(rows, longest, heads, width).transpose(1, 2)

    mask = packing.seen_LL if packing.is_uniform else packing.filled_SL[:, None, None, :]
    is_named = backend in KERNELS and mask is None
    with sdpa_kernel(KERNELS[backend]) if is_named else nullcontext():
        out = F.scaled_dot_product_attention(lay_out(q), lay_out(k), lay_out(v), attn_mask=mask)
    out = out.transpose(1, 2).reshape(rows * longest, heads, width)
    return out if packing.is_uniform else out[packing.slots_M]
