"""Is the model learning, or only its loss falling? Pure functions over features, and a verdict.

When features collapse, every clip gets nearly the same feature at a given place: the standard deviation
across samples at a fixed token position dies, while the loss looks better than ever. RankMe, the effective
number of dimensions in use, ignores scale and is watched beside it, never alone. Both are read against the
same encoder before training.
Source: RankMe, arXiv:2210.02885, eq. 2.

Shapes: M tokens, F fixed positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.config import HealthConfig

NUM_POSITIONS = 16


def fixed_positions(num_tokens: int) -> Tensor:
    """Token positions at which samples are compared: evenly spread, the same for the whole run (F,)."""
    count = min(NUM_POSITIONS, num_tokens)
    return ((torch.arange(count) + 0.5) * num_tokens / count).long()


@dataclass
class Moments:
    """Sums over tokens that add up over ranks, so that no feature needs to be gathered.

    count (F,), total (F, D), square (F, D) of the tokens at the fixed positions; gram (D, D) of all tokens.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    gram: Tensor

    @property
    def sums(self) -> list[Tensor]:
        """The tensors to be summed over ranks, in place."""
        return [self.count, self.total, self.square, self.gram]


@torch.no_grad()
def moments(features_MD: Tensor, position_M: Tensor, fixed_F: Tensor) -> Moments:
    """Sums of features that stand at tokens position_M of their clips, in float32 (counts exact)."""
    features = features_MD.float()
    fixed = fixed_F.to(features.device)
    slot = torch.full((int(fixed.max()) + 1,), -1, device=features.device)
    slot[fixed] = torch.arange(len(fixed), device=features.device)
    inside = position_M < len(slot)
    row_M = torch.where(inside, slot[position_M.clamp(max=len(slot) - 1)], -1)
    at_fixed = row_M >= 0
    rows, chosen = row_M[at_fixed], features[at_fixed]
    zeros = features.new_zeros(len(fixed), features.shape[1])
    return Moments(
        count=features.new_zeros(len(fixed)).index_add(0, rows, torch.ones_like(chosen[:, 0])),
        total=zeros.index_add(0, rows, chosen),
        square=zeros.index_add(0, rows, chosen.square()),
        gram=features.T @ features,
    )


def sample_std(sums: Moments) -> float:
    """Standard deviation across samples at a fixed position, mean over dimensions and positions.

    Positions with fewer than two samples do not count; nan when there is none.
    """
    enough = sums.count >= 2
    if not bool(enough.any()):
        return float("nan")
    n = sums.count[enough, None].double()
    total, square = sums.total[enough].double(), sums.square[enough].double()
    variance = (square - total.square() / n) / (n - 1)
    return float(variance.clamp(min=0).sqrt().mean())


def rankme(gram_DD: Tensor) -> float:
    """Effective rank: the exponential of the entropy of the normalised singular values of the features.

    gram_DD: features^T features; its eigenvalues are the squared singular values. Between 1 and D.
    """
    if not bool(torch.isfinite(gram_DD).all()):
        return float("nan")
    singular = torch.linalg.eigvalsh(gram_DD.double().cpu()).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def judged_features(metrics: Iterable[Mapping[str, Any]]) -> str:
    """Whose spread a run is judged by: those whose spread at the start was written down; or the target's."""
    named = {key for line in metrics for key in line if key.endswith("_std_untrained")}
    return min(named, default="health/target_std_untrained").split("/")[1].removesuffix("_std_untrained")


Word = Literal["healthy", "warning", "collapsed"]


@dataclass(frozen=True)
class Verdict:
    """The state of a run in a word, and the sentence behind it."""

    word: Word
    reason: str


@dataclass
class History:
    """What the sentinel remembers: the untrained baseline and how long the spread has been gone."""

    untrained_std: float | None = None
    looks_below: int = 0
    std: list[tuple[int, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {"untrained_std": self.untrained_std, "looks_below": self.looks_below, "std": self.std}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        return cls(
            state["untrained_std"], state["looks_below"], [(int(s), float(v)) for s, v in state["std"]]
        )


def judge(history: History, step: int, target_std: float, config: HealthConfig) -> Verdict:
    """Take one look into the history and judge it. The first look is the untrained baseline."""
    if not math.isfinite(target_std):
        return Verdict(
            "warning",
            "the features' spread cannot be measured: fewer than two clips a forward, or not finite",
        )
    history.std.append((step, target_std))
    if history.untrained_std is None:
        history.untrained_std = target_std
    is_below = target_std < config.std_floor * history.untrained_std
    history.looks_below = history.looks_below + 1 if is_below else 0
    return verdict_of(history, config)


def verdict_of(history: History, config: HealthConfig) -> Verdict:
    """What the looks so far amount to; also right after a resume."""
    if not history.std or history.untrained_std is None:
        return Verdict("healthy", "not looked at yet")
    target_std = history.std[-1][1]
    floor = config.std_floor * history.untrained_std
    if history.looks_below == 0:
        return Verdict("healthy", f"features vary across clips by {target_std:.3g}, floor {floor:.3g}")
    reason = (
        f"features vary across clips by {target_std:.3g}, "
        f"{target_std / history.untrained_std:.1%} of the untrained encoder's {history.untrained_std:.3g}, "
        f"for {history.looks_below} of {config.patience} looks"
    )
    return Verdict("collapsed" if history.looks_below >= config.patience else "warning", reason)
