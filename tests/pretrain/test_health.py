"""Feature health against plain formulas, and the verdict on planted collapses."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.config import HealthConfig
from pretrain.health import History, fixed_positions, judge, moments, rankme, sample_std


def features(clips: int = 6, tokens: int = 32, width: int = 8) -> torch.Tensor:
    return torch.randn(clips, tokens, width, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_std_is_over_samples_at_a_position_and_adds_up_over_ranks() -> None:
    x = features()
    fixed = fixed_positions(32)
    everywhere = torch.arange(32).repeat(2)
    parts = [moments(half.flatten(0, 1), everywhere, fixed) for half in x.split(2)]
    whole = parts[0]
    for part in parts[1:]:
        for mine, theirs in zip(whole.sums, part.sums, strict=True):
            mine += theirs
    assert sample_std(whole) == pytest.approx(float(x[:, fixed].std(0).mean()), rel=1e-5)


def test_uneven_kept_tokens_count_where_they_stand() -> None:
    x, fixed = features(5, 4, 3), torch.arange(4)
    kept = torch.tensor([0, 1, 0, 0, 3])
    found = sample_std(moments(x[:, 0], kept, fixed))
    assert found == pytest.approx(float(x[[0, 2, 3], 0].std(0).mean()), rel=1e-5)
    assert math.isnan(sample_std(moments(x[:2, 0], torch.tensor([0, 1]), fixed)))


def test_features_that_differ_by_position_only_have_no_spread() -> None:
    same = features(1).expand(6, -1, -1)
    sums = moments(same.flatten(0, 1), torch.arange(32).repeat(6), fixed_positions(32))
    assert sample_std(sums) == pytest.approx(0.0, abs=1e-2)
    assert rankme(sums.gram) > 5, "which is why rank alone decides nothing"


def test_rankme_is_the_entropy_of_singular_values() -> None:
    x = features().flatten(0, 1)
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum()
    assert rankme(x.T @ x) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-3)
    line = torch.randn(50, 1) @ torch.randn(1, 8)
    assert rankme(line.T @ line) == pytest.approx(1.0, abs=0.05)
    assert math.isnan(rankme(torch.full((3, 3), float("nan"))))


def verdicts(stds: list[float], patience: int = 2) -> list[str]:
    history = History()
    config = HealthConfig(std_floor=0.1, patience=patience)
    return [judge(history, step, std, config).word for step, std in enumerate(stds)]


def test_a_lasting_loss_of_spread_is_a_collapse_and_a_dip_is_not() -> None:
    assert verdicts([1.0, 0.5, 0.05, 0.04, 0.03]) == [
        "healthy",
        "healthy",
        "warning",
        "collapsed",
        "collapsed",
    ]
    assert verdicts([1.0, 0.05, 0.5, 0.05, 0.6]) == ["healthy", "warning", "healthy", "warning", "healthy"]


def test_a_look_that_cannot_be_measured_is_no_baseline() -> None:
    nan = float("nan")
    assert verdicts([nan, 1.0, nan, 0.05, 0.05]) == ["warning", "healthy", "warning", "warning", "collapsed"]


def test_the_history_survives_a_checkpoint() -> None:
    history = History()
    judge(history, 1, 1.0, HealthConfig())
    judge(history, 2, 0.01, HealthConfig())
    assert History.from_state(history.state()) == history
