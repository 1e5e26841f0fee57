"""The encoder: a pre-norm vision transformer over tubelets, on whole clips or on packed kept tokens.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip in time-major raster order,
M packed tokens of all sequences, D width.
Source: V-JEPA, arXiv:2404.08471, sec. 3; V-JEPA 2, arXiv:2506.09985, sec. 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config import EncoderConfig
from pretrain.model.attention import Backend, Packing, attend
from pretrain.model.rope import rope_table, rotate

Grid = tuple[int, int, int]


class Block(nn.Module):
    """Attention and MLP, each normed before and added after."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_MD: Tensor, table_2Md: Tensor, packing: Packing, backend: Backend) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_MD)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        out = attend(rotate(q, table_2Md), rotate(k, table_2Md), v, packing, backend)
        x_MD = x_MD + self.proj(out.flatten(-2))
        return x_MD + self.fc2(F.gelu(self.fc1(self.norm2(x_MD))))


class Transformer(nn.Module):
    """A stack of blocks over packed tokens with 3D rotary positions, and a last norm."""

    def __init__(
        self, width: int, depth: int, heads: int, mlp_ratio: float, grid: Grid, rope: str, backend: Backend
    ) -> None:
        super().__init__()
        self.width, self.grid, self.backend = width, grid, backend
        self.num_tokens = math.prod(grid)
        self.recompute = False
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("table_2Nd", rope_table(grid, width // heads, rope), persistent=False)

    def run(self, x_MD: Tensor, positions_M: Tensor, packing: Packing) -> Tensor:
        """Blocks and last norm. positions_M: each token's place in the grid, 0 to N - 1."""
        table = self.get_buffer("table_2Nd")[:, positions_M].to(x_MD.dtype)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_MD = checkpoint(block, x_MD, table, packing, self.backend, use_reentrant=False)
            else:
                x_MD = block(x_MD, table, packing, self.backend)
        return self.norm(x_MD)

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
        self.patch, self.tubelet = patch, tubelet
        self.weight = nn.Parameter(torch.empty(width, 3, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        batch, channels, frames, height, width = x_BCTHW.shape
        p, s = self.patch, self.tubelet
        x = x_BCTHW.reshape(batch, channels, frames // s, s, height // p, p, width // p, p)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * s * p * p)
        return F.linear(x, self.weight.flatten(1), self.bias)


class Encoder(Transformer):
    """Clips to tokens: all of them, or the kept ones of masked clips packed into one row."""

    def __init__(self, config: EncoderConfig, grid: Grid, backend: Backend = "sdpa") -> None:
        width, depth, heads, mlp_ratio = config.shape
        super().__init__(width, depth, heads, mlp_ratio, grid, config.rope, backend)
        self.embed = PatchEmbedding(width, config.patch, config.tubelet)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) to the features of all their tokens (B, N, D)."""
        x_BND = self.embed(x_BCTHW.to(self.dtype))
        batch, tokens, width = x_BND.shape
        positions = torch.arange(tokens, device=x_BND.device).repeat(batch)
        packing = Packing((tokens,) * batch, x_BND.device)
        return self.run(x_BND.reshape(-1, width), positions, packing).view(batch, tokens, width)

    def encode_kept(self, x_BCTHW: Tensor, source_M: Tensor, packing: Packing) -> Tensor:
        """Features (M, D) of kept tokens only; the others are never computed.

        source_M: clip * N + token of each kept token, sequence after sequence as in `packing`; a clip may
        appear in several sequences (one a mask kind), its tubelets are embedded once.
        """
        x_MD = self.embed(x_BCTHW.to(self.dtype)).flatten(0, 1)[source_M]
        return self.run(x_MD, source_M % self.num_tokens, packing)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        super().initialise(generator, std)
        nn.init.trunc_normal_(self.embed.weight, std=std, a=-2, b=2, generator=generator)
        nn.init.zeros_(self.embed.bias)
