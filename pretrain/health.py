"""Is the model learning, or only its loss falling? What features tell, as sums that add up over ranks.

When features collapse, every clip gets nearly the same feature at a given place: the standard deviation
across samples at a fixed token position dies, while the loss looks better than ever. RankMe, the effective
number of dimensions in use, ignores scale and is read beside it. Both are read against the same encoder
before training, and a loss against what trivial answers would have cost. Nothing here gathers features: a
rank's part is a few sums.
Source: RankMe, arXiv:2210.02885, eq. 2; effective rank, Roy and Vetterli 2007; the correlation of
dimensions, Barlow Twins, arXiv:2103.03230.

Shapes: M tokens, P hidden tokens, F fixed positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.objective.base import Output, Seen, normed
from pretrain.objective.guess import Guess

NUM_POSITIONS = 16


def fixed_positions(num_tokens: int) -> Tensor:
    """Token positions at which samples are compared: evenly spread, the same for the whole run (F,)."""
    count = min(NUM_POSITIONS, num_tokens)
    return ((torch.arange(count) + 0.5) * num_tokens / count).long()


@dataclass
class Moments:
    """Sums over tokens that add up over ranks, so that no feature needs to be gathered.

    count (F,), total (F, D), square (F, D) of the tokens at the fixed positions; tokens (1,), sum (D,) and
    gram (D, D) of all.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    tokens: Tensor
    sum: Tensor
    gram: Tensor

    @property
    def sums(self) -> list[Tensor]:
        """The tensors to be summed over ranks, in place."""
        return [self.count, self.total, self.square, self.tokens, self.sum, self.gram]


def rows_of(position_M: Tensor, fixed_F: Tensor) -> Tensor:
    """For each token the row of its position among the fixed ones, or -1 (M,)."""
    fixed = fixed_F.to(position_M.device)
    slot = torch.full((int(fixed_F.max()) + 1,), -1, device=position_M.device)
    slot[fixed] = torch.arange(len(fixed), device=position_M.device)
    inside = position_M < len(slot)
    return torch.where(inside, slot[position_M.clamp(max=len(slot) - 1)], -1)


@torch.no_grad()
def moments(features_MD: Tensor, position_M: Tensor, fixed_F: Tensor) -> Moments:
    """Sums of features that stand at tokens position_M of their clips, in float32 (counts exact)."""
    features = features_MD.float()
    row_M = rows_of(position_M, fixed_F)
    at_fixed = row_M >= 0
    rows, chosen = row_M[at_fixed], features[at_fixed]
    zeros = features.new_zeros(len(fixed_F), features.shape[1])
    return Moments(
        count=features.new_zeros(len(fixed_F)).index_add(0, rows, torch.ones_like(chosen[:, 0])),
        total=zeros.index_add(0, rows, chosen),
        square=zeros.index_add(0, rows, chosen.square()),
        tokens=features.new_full((1,), len(features)),
        sum=features.sum(0),
        gram=_gram(features),
    )


def _gram(features_MD: Tensor) -> Tensor:
    """features^T features in float32 proper: TF32, which training takes, would blur small variances."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return features_MD.T @ features_MD
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _variance(count_F: Tensor, total_FD: Tensor, square_FD: Tensor) -> Tensor:
    """Unbiased variance at those positions that have two samples or more (F', D), float64."""
    enough = count_F >= 2
    n = count_F[enough, None].double()
    total, square = total_FD[enough].double(), square_FD[enough].double()
    return ((square - total.square() / n) / (n - 1)).clamp(min=0)


def sample_std(sums: Moments) -> float:
    """Standard deviation across samples at a fixed position, mean over dimensions and positions.

    Positions with fewer than two samples do not count; nan when there is none.
    """
    variance = _variance(sums.count, sums.total, sums.square)
    return float(variance.sqrt().mean()) if variance.numel() else math.nan


def covariance(sums: Moments) -> Tensor:
    """Of the dimensions, over all tokens (D, D), float64."""
    n = sums.tokens.double().clamp(min=1)
    mean = sums.sum.double() / n
    return sums.gram.double() / n - torch.outer(mean, mean)


def _entropy_rank(shares: Tensor) -> float:
    return float(torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum()))


def ranks(sums: Moments) -> tuple[float, float]:
    """RankMe, and the effective rank of the centred features; both between 1 and D.

    RankMe: the exponential of the entropy of the features' normalised singular values, as published not
    centred. The effective rank takes the eigenvalues of the covariance, the shares of the variance, so that
    a large mean does not hide behind one strong direction.
    """
    if not bool(torch.isfinite(sums.gram).all()):
        return math.nan, math.nan
    both = torch.stack([sums.gram.double(), covariance(sums)])
    try:
        values = torch.linalg.eigvalsh(both).clamp(min=0)
    except torch.linalg.LinAlgError:  # did not converge: that is not to end a run
        return math.nan, math.nan
    singular = values[0].sqrt()
    rankme = _entropy_rank(singular / singular.sum().clamp(min=1e-12) + 1e-7)
    effective = _entropy_rank(values[1] / values[1].sum().clamp(min=1e-300))
    return rankme, effective


def correlation(sums: Moments) -> float:
    """Root mean square of the correlations of different dimensions, 0 to 1: 1, all say the same.

    Dimensions that do not vary at all do not count; nan when fewer than two do.
    """
    cov = covariance(sums)
    scale = cov.diagonal().clamp(min=0).sqrt()
    varies = scale > 1e-6 * scale.max().clamp(min=1e-30)
    count = int(varies.sum())
    if count < 2 or not bool(torch.isfinite(cov).all()):
        return math.nan
    found = cov[varies][:, varies] / torch.outer(scale[varies], scale[varies])
    return math.sqrt(max(0.0, float(found.square().sum()) - count) / (count * (count - 1)))


@dataclass
class GuessSums:
    """Sums of one rank's guess that add up over ranks.

    scalars: ranks (1 each), the three losses of `Guess.losses`, tokens, cosines of prediction and target.
    count (F,), total (F, D), square (F, D) of the targets at the fixed positions; error (F,), the squared
    error there.
    """

    scalars: Tensor
    count: Tensor
    total: Tensor
    square: Tensor
    error: Tensor

    @property
    def sums(self) -> list[Tensor]:
        """The tensors to be summed over ranks, in place."""
        return [self.scalars, self.count, self.total, self.square, self.error]


def first_of_each(source_P: Tensor) -> Tensor:
    """Where each number stands first (P,): a token that several masks hide is one sample, not several."""
    order = torch.argsort(source_P, stable=True)
    is_new = torch.ones_like(source_P, dtype=torch.bool)
    is_new[order[1:]] = source_P[order[1:]] != source_P[order[:-1]]
    return is_new


@torch.no_grad()
def guess_sums(guess: Guess, fixed_F: Tensor) -> GuessSums:
    said, wanted = guess.prediction_PO.float(), guess.wanted_PO.float()
    losses = torch.stack([loss.float() for loss in guess.losses().values()])
    cosine = torch.nn.functional.cosine_similarity(said, wanted, dim=-1).sum()
    row_P = rows_of(guess.token_P, fixed_F)
    at_fixed = (row_P >= 0) & first_of_each(guess.source_P)
    rows, chosen = row_P[at_fixed], wanted[at_fixed]
    zeros = wanted.new_zeros(len(fixed_F), wanted.shape[1])
    error = (said[at_fixed] - chosen).square().sum(-1)
    one = losses.new_ones(1)
    return GuessSums(
        scalars=torch.cat([one, losses, losses.new_full((1,), len(said)), cosine[None]]),
        count=wanted.new_zeros(len(fixed_F)).index_add(0, rows, torch.ones_like(error)),
        total=zeros.index_add(0, rows, chosen),
        square=zeros.index_add(0, rows, chosen.square()),
        error=wanted.new_zeros(len(fixed_F)).index_add(0, rows, error),
    )


def explained(sums: GuessSums) -> float:
    """Share of the targets' variance across clips at a fixed position that the prediction accounts for.

    1 exact; 0 no better than each position's mean over the clips, the same answer for all; nan where no
    position has two samples, or none varies.
    """
    enough = sums.count >= 2
    variance = _variance(sums.count, sums.total, sums.square)
    spread = float((variance.sum(-1) * (sums.count[enough].double() - 1)).sum())
    return 1 - float(sums.error[enough].double().sum()) / spread if spread > 0 else math.nan


def judged_features(metrics: Iterable[Mapping[str, Any]]) -> str:
    """Whose spread a run is judged by: those whose spread at the start was written down; or the target's.

    `_untrained` is what earlier releases called the start.
    """
    ends = ("_std_start", "_std_untrained")
    named = {key for line in metrics for key in line if key.endswith(ends)}
    return min(named, default="health/target_std_start").split("/")[1].rsplit("_std_", 1)[0]


@dataclass
class Look:
    """What one rank's features gave at a look; add `sums` up over ranks before `values`."""

    seen: dict[str, Moments]
    guess: GuessSums

    @property
    def sums(self) -> list[Tensor]:
        return [tensor for found in self.seen.values() for tensor in found.sums] + self.guess.sums

    def values(self) -> dict[str, float]:
        """Metrics by name: std, rankme, effective_rank and correlation of each; and of the guess."""
        found: dict[str, float] = {}
        for name, sums in self.seen.items():
            rankme, effective = ranks(sums)
            found |= {
                f"{name}_std": sample_std(sums),
                f"{name}_rankme": rankme,
                f"{name}_effective_rank": effective,
                f"{name}_correlation": correlation(sums),
            }
        count, *losses, tokens, cosine = self.guess.scalars.tolist()
        names = ("loss_prediction", "loss_mean_token", "loss_copy")
        found |= {name: loss / count for name, loss in zip(names, losses, strict=True)}
        return found | {"alignment": cosine / max(1.0, tokens), "explained": explained(self.guess)}


def look_at(output: Output, fixed_F: Tensor) -> Look:
    """One rank's sums of a forward's features and guess.

    The context's are layer-normed, as targets are: how large an encoder makes its features is no spread.
    """

    def sums(name: str, found: Seen) -> Moments:
        features = normed(found.features_MD) if name == "context" else found.features_MD
        return moments(features, found.token_M, fixed_F)

    seen = {name: sums(name, found) for name, found in output.seen.items()}
    return Look(seen, guess_sums(output.guess, fixed_F))
