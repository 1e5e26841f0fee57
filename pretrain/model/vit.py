"""The encoder: a pre-norm vision transformer over tubelets, on whole clips or on packed kept tokens.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip in time-major raster order,
M packed tokens of all sequences, D width, L levels.
Source: V-JEPA, arXiv:2404.08471, sec. 3; V-JEPA 2, arXiv:2506.09985, sec. 2; V-JEPA 2.1, arXiv:2603.14482.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as symbols
from torch.utils.checkpoint import checkpoint

from pretrain.config import EncoderConfig
from pretrain.masks import Stills
from pretrain.model.attention import Backend, Packing, attend, equal_packing
from pretrain.model.linear import Linear, linear
from pretrain.model.positions import Grid, rope_on, rotate, sincos_on


class LayerNorm(nn.LayerNorm):
    """On CPU in bf16 it computes in float32: torch adds the gradients of weight and bias up in bf16 there,
    token by token, and a sum of thousands stops growing (4 times too small was seen).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            shape, weight, bias = self.normalized_shape, self.weight.float(), self.bias.float()
            return F.layer_norm(x.float(), shape, weight, bias, self.eps).to(x.dtype)
        return super().forward(x)


def rows_of(table_KD: Tensor, row_M: Tensor) -> Tensor:
    """table_KD[row_M] (M, D) of a few rows that many tokens share.

    It is a matrix product, which adds gradients up in float32: that of indexing adds them in the table's own
    precision on CPU, and in bf16 a sum of thousands stops growing.
    """
    is_row_MK = row_M[:, None] == torch.arange(len(table_KD), device=row_M.device)
    return is_row_MK.to(table_KD.dtype) @ table_KD


class Block(nn.Module):
    """Attention and MLP, each normed before and added after.

    compiler: of what is done before and after attention; None computes it as it is written.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.compiler: str | None = None
        hidden = round(width * mlp_ratio)
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(
        self,
        x_MD: Tensor,
        table_2Md: Tensor | None,
        packing: Packing,
        backend: Backend,
        keeps_mlp: bool = True,
    ) -> Tensor:
        """keeps_mlp: False computes what is inside the MLP again in the backward."""
        parts = AS_WRITTEN if self.compiler is None else compiled(self.compiler)
        q, k, v = parts.before(self, x_MD, table_2Md)
        attended_MHd = attend(q, k, v, packing, backend)
        if keeps_mlp:
            whole_MD: Tensor = parts.after(self, x_MD, attended_MHd)
            return whole_MD
        x_MD = parts.joined(self, x_MD, attended_MHd)
        return x_MD + _again(parts.mlp, self, x_MD)

    def before(self, x_MD: Tensor, table_2Md: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (M, H, d) of each token; the first two are turned by their positions."""
        qkv_M3Hd = self.qkv(self.norm1(x_MD)).unflatten(-1, (3, self.heads, -1))
        if table_2Md is None:
            q, k, v = qkv_M3Hd.unbind(1)
        else:
            turned, v_M1Hd = qkv_M3Hd.split([2, 1], dim=1)
            q, k = rotate(turned, table_2Md).unbind(1)
            v = v_M1Hd.squeeze(1)
        return q, k, v

    def after(self, x_MD: Tensor, attended_MHd: Tensor) -> Tensor:
        """What attention gave, and then the MLP, added."""
        x_MD = self.joined(x_MD, attended_MHd)
        return x_MD + self.mlp(x_MD)

    def joined(self, x_MD: Tensor, attended_MHd: Tensor) -> Tensor:
        return x_MD + self.proj(attended_MHd.flatten(-2))

    def mlp(self, x_MD: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x_MD))))
        return hidden


def _again(run: Callable[..., Tensor], *given: object) -> Tensor:
    """run(*given), which keeps what was given alone, and runs once more in the backward."""
    found: Tensor = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
    return found


class Parts(NamedTuple):
    """What a block does before and after attention, the latter also in two: functions of block and input."""

    before: Callable[..., Any]
    after: Callable[..., Any]
    joined: Callable[..., Any]
    mlp: Callable[..., Any]


# Each width of a stack takes one, with and without gradient; at its own limit, 8, torch stops compiling.
GRAPHS_A_PART = 32
AS_WRITTEN = Parts(Block.before, Block.after, Block.joined, Block.mlp)


def compiled(compiler: str) -> Parts:
    """`AS_WRITTEN`, compiled once for any number of tokens.

    Attention stays outside: its kernels are compiled already, and what they take is made of Python's numbers,
    for each of which a graph would be compiled anew. Blocks of one shape share what is compiled.
    compiler: a backend of torch.compile, such as inductor.
    """
    if not getattr(_here, "knows", False):
        # torch keeps its settings for each thread; blocks are computed again in one of autograd's on CUDA.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_A_PART)
        # Else a first batch of as many tokens as the width has a graph for batches alone of which that is so.
        symbols.use_duck_shape = False
        _here.knows = True
    return _compiled(compiler)


_here = threading.local()


@cache
def _compiled(compiler: str) -> Parts:
    return Parts(*(torch.compile(part, dynamic=True, backend=compiler) for part in AS_WRITTEN))


class Transformer(nn.Module):
    """A stack of blocks over packed tokens with 3D positions, and a last norm.

    grid: what it is trained on; sines and cosines (`rope` none) are stretched from there to other sizes.
    levels: blocks after which features are taken, the last included; each of the others has its own norm.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        grid: Grid,
        rope: str,
        backend: Backend,
        *,
        rope_span: int | None = None,
        levels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.width, self.head_width, self.grid = width, width // heads, grid
        self.rope, self.rope_span, self.backend = rope, rope_span, backend
        self.again_whole = self.again_mlps = 0  # blocks that a backward computes again: `recompute`
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.levels = tuple(levels)[:-1]
        self.level_norms = nn.ModuleList(LayerNorm(width, eps=1e-6) for _ in self.levels)
        self.norm = LayerNorm(width, eps=1e-6)

    def compile_blocks(self, compiler: str | None) -> None:
        """Compile them from now on, by a backend of torch.compile; None: no longer."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compiler = compiler

    @property
    def num_tokens(self) -> int:
        """Of a clip of the size it is trained on."""
        return math.prod(self.grid)

    def recompute(self, whole: int, mlps: int = 0) -> None:
        """The first `whole` blocks keep their input alone, the next `mlps` all but the inside of their MLP;
        what is not kept is computed again in the backward.
        """
        assert min(whole, mlps) >= 0 and whole + mlps <= len(self.blocks)
        self.again_whole, self.again_mlps = whole, mlps

    def positions(self, grid: Grid, device: torch.device) -> Tensor | None:
        """What is added to the tokens of a clip (N, D); None where attention turns them instead."""
        return sincos_on(self.grid, grid, self.width, device) if self.rope == "none" else None

    def run(
        self,
        x_MD: Tensor,
        token_M: Tensor,
        packing: Packing,
        grid: Grid | None = None,
        *,
        all_levels: bool = False,
    ) -> Tensor:
        """Blocks and norm: (M, D), or with all_levels (M, L D), shallow to deep.

        token_M: each token's place in the grid, 0 to N - 1. grid: None for the one it is trained on.
        """
        table = None
        if self.rope != "none":
            angles = rope_on(grid or self.grid, self.head_width, self.rope, self.rope_span, x_MD.device)
            table = angles[:, token_M].to(x_MD.dtype)
        taken: list[Tensor] = []
        whole, mlps = (self.again_whole, self.again_mlps) if torch.is_grad_enabled() else (0, 0)
        for number, block in enumerate(self.blocks, start=1):
            if number <= whole:
                x_MD = _again(block, x_MD, table, packing, self.backend)
            else:
                x_MD = block(x_MD, table, packing, self.backend, number > whole + mlps)
            if all_levels and number in self.levels:
                taken.append(self.level_norms[len(taken)](x_MD))
        return torch.cat([*taken, self.norm(x_MD)], dim=-1) if taken else self.norm(x_MD)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Truncated normal, zero biases, and residual projections of block i divided by sqrt(2 i)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std, a=-2, b=2, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, PatchEmbedding):
                nn.init.trunc_normal_(module.weight, std=std, a=-2, b=2, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Modalities):
                nn.init.normal_(module.table_2D, std=1e-6, generator=generator)
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            block.proj.weight.div_(math.sqrt(2.0 * number))
            block.fc2.weight.div_(math.sqrt(2.0 * number))


class PatchEmbedding(nn.Module):
    """Tubelets of (tubelet, patch, patch) pixels to tokens.

    The weight has the shape of a 3D convolution, (D, 3, tubelet, patch, patch); since tubelets do not
    overlap, it is applied as one matrix product, which needs no convolution kernels.
    """

    def __init__(self, width: int, patch: int, tubelet: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        tubelet, patch = self.weight.shape[2:4]
        return linear(tubelet_pixels(x_BCTHW, tubelet, patch), self.weight.flatten(1), self.bias)


def tubelet_pixels(x_BCTHW: Tensor, tubelet: int, patch: int) -> Tensor:
    """The pixels of each token: (B, N, C * tubelet * patch * patch)."""
    batch, channels, frames, height, width = x_BCTHW.shape
    s, p = tubelet, patch
    grid = frames // s, height // p, width // p
    x = x_BCTHW.reshape(batch, channels, grid[0], s, grid[1], p, grid[2], p)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, math.prod(grid), channels * s * p * p)


class Modalities(nn.Module):
    """One learned vector for tokens of clips, one for tokens of pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table_2D = nn.Parameter(torch.empty(2, width))

    def forward(self, x_MD: Tensor, is_picture_M: Tensor) -> Tensor:
        return x_MD + rows_of(self.table_2D, is_picture_M.long())


class Encoder(Transformer):
    """Clips to tokens: all of them, or the kept ones of masked clips packed into one row.

    Where pictures have an embedding of their own, one is a clip whose tokens are those of its first tubelet,
    numbered as there; the others do not exist.
    """

    def __init__(self, config: EncoderConfig, grid: Grid, backend: Backend = "sdpa") -> None:
        width, depth, heads, ratio = config.shape
        super().__init__(
            width, depth, heads, ratio, grid, config.rope, backend,
            rope_span=config.rope_span, levels=config.levels,
        )  # fmt: skip
        self.patch, self.tubelet = config.patch, config.tubelet
        self.embed = PatchEmbedding(width, config.patch, config.tubelet)
        self.embed_pictures = self.modalities = None
        if config.pictures == "own":
            self.embed_pictures = PatchEmbedding(width, config.patch, 1)
            self.modalities = Modalities(width)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def grid_of(self, x_BCTHW: Tensor) -> Grid:
        """Tokens of a clip in time, height, width; a single frame makes one of time."""
        _, _, frames, height, width = x_BCTHW.shape
        return max(1, frames // self.tubelet), height // self.patch, width // self.patch

    def forward(
        self,
        x_BCTHW: Tensor,
        source_M: Tensor | None = None,
        packing: Packing | None = None,
        pictures: Sequence[bool] | Stills = (),
        *,
        all_levels: bool = False,
    ) -> Tensor:
        """Normalised clips (B, 3, T, H, W), or pictures (T 1), to features of all tokens (B, N, D or L D).

        With source_M and packing: features (M, D or L D) of the tokens named only; the others are never
        computed. source_M: clip * N + token of each, sequence after sequence as in `packing`; a clip may
        appear in several sequences (one a mask kind), its tubelets are embedded once. pictures: which clips
        are.
        """
        grid = self.grid_of(x_BCTHW)
        batch, tokens = x_BCTHW.shape[0], math.prod(grid)
        if source_M is None or packing is None:
            source_M, packing = None, equal_packing(batch, tokens, x_BCTHW.device)
            pictures = (x_BCTHW.shape[2] == 1,) * batch
        stills = self._stills(pictures, x_BCTHW)
        x_BND = self._embedded(x_BCTHW.to(self.dtype), stills, tokens)
        if (added_ND := self.positions(grid, x_BND.device)) is not None:
            x_BND = x_BND + added_ND.to(x_BND.dtype)
        x_MD = x_BND.flatten(0, 1)
        if source_M is None:
            token_M = torch.arange(tokens, device=x_MD.device).repeat(batch)
        else:
            x_MD, token_M = x_MD[source_M], source_M % tokens
        if self.modalities is not None and stills is not None:
            whole = stills.is_still_B.repeat_interleave(tokens)
            x_MD = self.modalities(x_MD, whole if source_M is None else whole[source_M])
        features = self.run(x_MD, token_M, packing, grid, all_levels=all_levels)
        return features.view(batch, tokens, -1) if source_M is None else features

    def _stills(self, pictures: Sequence[bool] | Stills, x_BCTHW: Tensor) -> Stills | None:
        """None where pictures have no embedding of their own: then it matters not which they are."""
        if self.embed_pictures is None:
            return None
        if isinstance(pictures, Stills):
            return pictures
        return Stills.of(pictures or (False,) * len(x_BCTHW), x_BCTHW.device)

    def _embedded(self, x_BCTHW: Tensor, stills: Stills | None, tokens: int) -> Tensor:
        if self.embed_pictures is None or stills is None:
            if x_BCTHW.shape[2] == 1:
                x_BCTHW = x_BCTHW.expand(-1, -1, self.tubelet, -1, -1)
            return self.embed(x_BCTHW)
        # Both embeddings are called in every batch, also with no clip at all: ranks that gather different
        # weights, or reduce different sets of gradients, would wait for each other.
        rows = stills.rows_R
        still = self.embed_pictures(x_BCTHW[rows, :, :1])
        still = F.pad(still, (0, 0, 0, tokens - still.shape[1]))
        if len(rows) == len(x_BCTHW):
            empty = self.embed(x_BCTHW.new_empty(0, 3, self.tubelet, *x_BCTHW.shape[3:]))
            return still + empty.sum()
        x_BND = self.embed(x_BCTHW)
        return x_BND.index_copy(0, rows, still.to(x_BND.dtype))
