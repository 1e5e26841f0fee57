"""The encoder: a pre-norm vision transformer over tubelets, on whole clips or on packed kept tokens.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip in time-major raster order,
M packed tokens of all sequences, D width, L levels.
Source: V-JEPA, arXiv:2404.08471, sec. 3; V-JEPA 2, arXiv:2506.09985, sec. 2; V-JEPA 2.1, arXiv:2603.14482.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config import EncoderConfig
from pretrain.model.attention import Backend, Packing, attend
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
    """Attention and MLP, each normed before and added after."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = round(width * mlp_ratio)
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self,
        x_MD: Tensor,
        table_2Md: Tensor | None,
        packing: Packing,
        backend: Backend,
        keeps_mlp: bool = True,
    ) -> Tensor:
        """keeps_mlp: False computes what is inside the MLP again in the backward."""
        q, k, v = self.qkv(self.norm1(x_MD)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if table_2Md is not None:
            q, k = rotate(q, table_2Md), rotate(k, table_2Md)
        x_MD = x_MD + self.proj(attend(q, k, v, packing, backend).flatten(-2))
        if not keeps_mlp:
            return x_MD + _again(self.mlp, x_MD)
        return x_MD + self.mlp(x_MD)

    def mlp(self, x_MD: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x_MD))))
        return hidden


def _again(run: Callable[..., Tensor], *given: object) -> Tensor:
    """run(*given), which keeps what was given alone, and runs once more in the backward."""
    found: Tensor = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
    return found


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
        return F.linear(tubelet_pixels(x_BCTHW, tubelet, patch), self.weight.flatten(1), self.bias)


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
        pictures: Sequence[bool] = (),
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
        is_whole = source_M is None or packing is None
        if source_M is None or packing is None:
            source_M = torch.arange(batch * tokens, device=x_BCTHW.device)
            packing = Packing((tokens,) * batch, x_BCTHW.device)
            pictures = (x_BCTHW.shape[2] == 1,) * batch
        x_BND = self._embedded(x_BCTHW.to(self.dtype), pictures, tokens)
        if (added_ND := self.positions(grid, x_BND.device)) is not None:
            x_BND = x_BND + added_ND.to(x_BND.dtype)
        x_MD = x_BND.flatten(0, 1)[source_M]
        if self.modalities is not None:
            is_picture = torch.tensor(pictures or (False,) * len(x_BND), device=x_MD.device)
            x_MD = self.modalities(x_MD, is_picture[source_M // tokens])
        features = self.run(x_MD, source_M % tokens, packing, grid, all_levels=all_levels)
        return features.view(batch, tokens, -1) if is_whole else features

    def _embedded(self, x_BCTHW: Tensor, pictures: Sequence[bool], tokens: int) -> Tensor:
        if self.embed_pictures is None:
            if x_BCTHW.shape[2] == 1:
                x_BCTHW = x_BCTHW.expand(-1, -1, self.tubelet, -1, -1)
            return self.embed(x_BCTHW)
        # Both embeddings are called in every batch, also with no clip at all: ranks that gather different
        # weights, or reduce different sets of gradients, would wait for each other.
        rows = torch.tensor([n for n, is_picture in enumerate(pictures) if is_picture], dtype=torch.long)
        rows = rows.to(x_BCTHW.device)
        still = self.embed_pictures(x_BCTHW[rows, :, :1])
        still = F.pad(still, (0, 0, 0, tokens - still.shape[1]))
        if len(rows) == len(x_BCTHW):
            empty = self.embed(x_BCTHW.new_empty(0, 3, self.tubelet, *x_BCTHW.shape[3:]))
            return still + empty.sum()
        x_BND = self.embed(x_BCTHW)
        return x_BND.index_copy(0, rows, still.to(x_BND.dtype))
