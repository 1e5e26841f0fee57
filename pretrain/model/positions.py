"""Where a token stands, told to attention: 3D rotary positions, or the sine and cosine table added before it.

Two variants of how frequencies meet channels. `vjepa2` repeats the list of frequencies while it turns
adjacent pairs, so that the two channels of a pair turn by different angles: a quirk that the released
V-JEPA 2 weights depend on. `interleaved` gives both channels of a pair the same angle, as V-JEPA 2.1 does.
V-JEPA 1 adds a fixed table instead and turns nothing (`none`).
Source: V-JEPA 2, arXiv:2506.09985, sec. 2.1; RoFormer, arXiv:2104.09864; V-JEPA, arXiv:2404.08471.

Shapes: N tokens of the grid, M packed tokens, H heads, d width a head, D width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]


def _frequencies(width: int) -> Tensor:
    """width / 2 of them, from 1 down to nearly 1 / 10000."""
    return 1.0 / 10_000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))


def _axes(grid: Grid, span: int | None = None) -> list[Tensor]:
    """Time, row, column of each token in raster order, (N, 1) each; rows and columns over 0 to span - 1."""
    lines = [torch.arange(n, dtype=torch.float64) for n in grid]
    if span is not None:
        lines[1:] = [line * (span - 1) / max(1, len(line) - 1) for line in lines[1:]]
    return [position.reshape(-1, 1) for position in torch.meshgrid(*lines, indexing="ij")]


def rope_table(grid: Grid, head_width: int, variant: str, span: int | None = None) -> Tensor:
    """Cosines and sines (2, N, d), float32, for every token of a (time, rows, columns) grid in raster order.

    Each axis takes 2 * (d // 6) channels; channels left over are not turned (cosine 1, sine 0).
    span: rows and columns are stretched to run from 0 to span - 1, as V-JEPA 2.1 does for other sizes.
    """
    axis_width = 2 * ((head_width // 3) // 2)
    omega = _frequencies(axis_width)
    angles = []
    for position in _axes(grid, span):
        angle = position * omega
        angles.append(angle.repeat(1, 2) if variant == "vjepa2" else angle.repeat_interleave(2, dim=1))
    angle_Nd = torch.cat(angles, dim=1)
    still = torch.zeros(angle_Nd.shape[0], head_width - angle_Nd.shape[1])
    angle_Nd = torch.cat([angle_Nd, still], dim=1)
    return torch.stack([angle_Nd.cos(), angle_Nd.sin()]).float()


def sincos_table(grid: Grid, width: int) -> Tensor:
    """Sines and cosines (N, D), float32: a third of the channels each for time, row and column."""
    axis_width = 2 * math.ceil(width / 6)
    omega = _frequencies(axis_width)
    parts = []
    for position in _axes(grid):
        angle = position * omega
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)[:, :width].float()


def stretched(table_ND: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """A table of one grid brought to another, trilinear, as V-JEPA does for other sizes of clips."""
    if trained == grid:
        return table_ND
    volume = table_ND.view(1, *trained, -1).permute(0, 4, 1, 2, 3)
    scaled = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return scaled.permute(0, 2, 3, 4, 1).reshape(math.prod(grid), -1)


@lru_cache(maxsize=16)
def rope_on(grid: Grid, head_width: int, variant: str, span: int | None, device: torch.device) -> Tensor:
    """`rope_table` on a device, kept."""
    with torch.inference_mode(False), torch.no_grad():
        return rope_table(grid, head_width, variant, span).to(device)


@lru_cache(maxsize=16)
def sincos_on(trained: Grid, grid: Grid, width: int, device: torch.device) -> Tensor:
    """`sincos_table` of the trained grid, stretched to another, on a device, kept."""
    with torch.inference_mode(False), torch.no_grad():
        return stretched(sincos_table(trained, width), trained, grid).to(device)


def rotate(x_MHd: Tensor, table_2Md: Tensor) -> Tensor:
    """Turn adjacent channel pairs of each head by the token's angles.

    x_MHd: there may be more dimensions between tokens and channels, such as query and key turned together.
    """
    shape = (-1, *(1,) * (x_MHd.ndim - 2), x_MHd.shape[-1])
    cos, sin = table_2Md[0].view(shape), table_2Md[1].view(shape)
    # Its gradient is one copy; that of x[..., 0::2] and x[..., 1::2] is zeros, two copies and a sum.
    even, odd = x_MHd.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x_MHd * cos + turned * sin
