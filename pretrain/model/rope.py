"""3D rotary positions: a token's time, row and column each turn a third of every head.

Two variants of how frequencies meet channels. `vjepa2` repeats the list of frequencies while it turns
adjacent pairs, so that the two channels of a pair turn by different angles: a quirk that the released
V-JEPA 2 weights depend on. `interleaved` gives both channels of a pair the same angle, as V-JEPA 2.1 does.
Source: V-JEPA 2, arXiv:2506.09985, sec. 2.1; RoFormer, arXiv:2104.09864.

Shapes: N tokens of the grid, M packed tokens, H heads, d width a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(grid: tuple[int, int, int], head_width: int, variant: str) -> Tensor:
    """Cosines and sines (2, N, d), float32, for every token of a (time, rows, columns) grid in raster order.

    Each axis takes 2 * (d // 6) channels; channels left over are not turned (cosine 1, sine 0).
    """
    axis_width = 2 * ((head_width // 3) // 2)
    omega = 1.0 / 10_000 ** (torch.arange(axis_width // 2, dtype=torch.float32) / (axis_width / 2))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    angles = []
    for position in axes:
        angle = position.reshape(-1, 1) * omega
        angles.append(angle.repeat(1, 2) if variant == "vjepa2" else angle.repeat_interleave(2, dim=1))
    angle_Nd = torch.cat(angles, dim=1)
    still = torch.zeros(angle_Nd.shape[0], head_width - angle_Nd.shape[1])
    angle_Nd = torch.cat([angle_Nd, still], dim=1)
    return torch.stack([angle_Nd.cos(), angle_Nd.sin()])


def rotate(x_MHd: Tensor, table_2Md: Tensor) -> Tensor:
    """Turn adjacent channel pairs of each head by the token's angles."""
    cos_M1d, sin_M1d = table_2Md[0, :, None], table_2Md[1, :, None]
    even, odd = x_MHd[..., 0::2], x_MHd[..., 1::2]
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x_MHd * cos_M1d + turned * sin_M1d
