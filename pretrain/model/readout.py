"""A linear layer from each moment's mean feature to a few numbers.

Shapes: B clips, t tubelets, P places a tubelet, D width, O numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.linear import Linear


class Readout(nn.Module):
    """The least that can be put on an encoder: what it says, the features hold."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.out = Linear(width, numbers)

    def forward(self, features_BtPD: Tensor) -> Tensor:
        """(B, t, O), in the precision of the weights."""
        mean_BtD = features_BtPD.float().mean(2)
        said_BtO: Tensor = self.out(mean_BtD.to(self.out.weight.dtype))
        return said_BtO

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Truncated normal, and a bias of zero: at first it tells about the mean of what is standardised."""
        nn.init.trunc_normal_(self.out.weight, std=std, a=-2, b=2, generator=generator)
        nn.init.zeros_(self.out.bias)
