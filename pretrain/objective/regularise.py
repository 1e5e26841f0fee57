"""What keeps features from collapsing without a second encoder: VICReg's and SIGReg's losses.

Both look at one vector a clip, the mean of its context's features. They see the clips of one forward on one
rank: nothing is gathered, so that a model knows no rank.
Source: VICReg, arXiv:2105.04906, eq. 1 to 4; LeJEPA, arXiv:2511.08544, sec. 4; Epps and Pulley 1983.

Shapes: M kept tokens, S sequences, B vectors, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config.objective import RegulariserConfig, VicregConfig
from pretrain.masks import Masks
from pretrain.pinned import sent
from pretrain.rng import stream

EPS = 1e-4
KNOTS, REACH = 17, 5.0  # of the integral over characteristic functions, from -REACH to REACH


def pooled(features_MD: Tensor, masks: Masks) -> list[Tensor]:
    """The mean feature of each sequence, float32, as (B, D) for each mask kind."""
    zeros = features_MD.new_zeros(masks.num_sequences, features_MD.shape[1], dtype=torch.float32)
    mean_SD = zeros.index_add(0, masks.kept.sequence, features_MD.float())
    mean_SD = mean_SD / masks.kept.lengths_S[:, None]
    return [mean_SD[own] for own in masks.kind_spans if own.stop > own.start]


def vicreg_terms(z_BD: Tensor) -> tuple[Tensor, Tensor]:
    """The variance term, a hinge below a standard deviation of 1, and the covariance term."""
    std_D = (z_BD.var(dim=0) + EPS).sqrt()
    centred = z_BD - z_BD.mean(dim=0)
    covariance = centred.T @ centred / (len(z_BD) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return F.relu(1.0 - std_D).mean(), off_diagonal / z_BD.shape[1]


def sigreg_statistic(z_BD: Tensor, directions: int, generator: torch.Generator) -> Tensor:
    """Mean over random directions of Epps and Pulley's distance to the standard normal distribution.

    B times the integral of |empirical - normal characteristic function|², weighted by exp(-t²/2).
    """
    a_DA = sent(torch.randn(z_BD.shape[1], directions, generator=generator), z_BD.device)
    shadow_BA = z_BD @ (a_DA / a_DA.norm(dim=0))
    t = torch.linspace(-REACH, REACH, KNOTS, device=z_BD.device)
    normal = torch.exp(-t.square() / 2)
    turned = shadow_BA[..., None] * t
    distance = (turned.cos().mean(0) - normal).square() + turned.sin().mean(0).square()
    return len(z_BD) * torch.trapezoid(distance * normal, t, dim=-1).mean()


def regularise(
    configs: Sequence[RegulariserConfig], context_MD: Tensor, masks: Masks, seed: int, step: int
) -> dict[str, Tensor]:
    """The weighted losses by name, means over mask kinds; kinds with fewer than two clips add nothing."""
    if not configs:
        return {}
    found: dict[str, Tensor] = {}
    vectors = [z_BD for z_BD in pooled(context_MD, masks) if len(z_BD) >= 2]
    nothing = context_MD.float().sum() * 0.0
    for config in configs:
        if isinstance(config, VicregConfig):
            terms = [vicreg_terms(z_BD) for z_BD in vectors]
            found["variance"] = config.variance * _mean([term[0] for term in terms], nothing)
            found["covariance"] = config.covariance * _mean([term[1] for term in terms], nothing)
        else:
            generator = torch.Generator().manual_seed(int(stream(seed, "sigreg", step).integers(1 << 62)))
            statistics = [sigreg_statistic(z_BD, config.directions, generator) for z_BD in vectors]
            found["sigreg"] = config.weight * _mean(statistics, nothing)
    return found


def _mean(terms: Sequence[Tensor], nothing: Tensor) -> Tensor:
    return torch.stack(list(terms)).mean() if terms else nothing
