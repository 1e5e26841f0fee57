"""Feature health against plain formulas over whole features, and over sums of two halves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.health import (
    GuessSums,
    Moments,
    correlation,
    covariance,
    explained,
    fixed_positions,
    guess_sums,
    judged_features,
    moments,
    ranks,
    sample_std,
)
from pretrain.objective.guess import Guess, nearest_kept
from tests.pretrain.small_objective import KINDS, config_of, passed, small_batch


def features(clips: int = 6, tokens: int = 32, width: int = 8) -> torch.Tensor:
    return torch.randn(clips, tokens, width, generator=torch.Generator().manual_seed(0)) * 3 + 1


def sums_of(x_CND: torch.Tensor) -> Moments:
    """Of two halves of the clips, added up as over ranks."""
    fixed, tokens = fixed_positions(x_CND.shape[1]), x_CND.shape[1]
    first, *others = (
        moments(half.flatten(0, 1), torch.arange(tokens).repeat(len(half)), fixed)
        for half in x_CND.tensor_split(2)
    )
    for part in others:
        for mine, theirs in zip(first.sums, part.sums, strict=True):
            mine += theirs
    return first


def test_std_is_over_samples_at_a_position() -> None:
    x = features()
    fixed = fixed_positions(32)
    assert sample_std(sums_of(x)) == pytest.approx(float(x[:, fixed].std(0).mean()), rel=1e-5)


def test_uneven_kept_tokens_count_where_they_stand() -> None:
    x, fixed = features(5, 4, 3), torch.arange(4)
    kept = torch.tensor([0, 1, 0, 0, 3])
    found = sample_std(moments(x[:, 0], kept, fixed))
    assert found == pytest.approx(float(x[[0, 2, 3], 0].std(0).mean()), rel=1e-5)
    assert math.isnan(sample_std(moments(x[:2, 0], torch.tensor([0, 1]), fixed)))


def test_features_that_differ_by_position_only_have_no_spread() -> None:
    sums = sums_of(features(1).expand(6, -1, -1))
    assert sample_std(sums) == pytest.approx(0.0, abs=1e-2)
    assert ranks(sums)[0] > 5, "which is why rank alone decides nothing"


def test_ranks_are_entropies_of_singular_values_and_of_variances() -> None:
    x = features().flatten(0, 1)
    rankme, effective = ranks(sums_of(features()))

    def perplexity(values: torch.Tensor) -> float:
        share = values / values.sum()
        return float(torch.exp(-(share * share.log()).sum()))

    assert rankme == pytest.approx(perplexity(torch.linalg.svdvals(x.double())), rel=1e-3)
    variances = torch.linalg.svdvals((x - x.mean(0)).double()).square()
    assert effective == pytest.approx(perplexity(variances), rel=1e-3)
    line = sums_of(torch.randn(5, 10, 1) @ torch.randn(1, 8))
    assert ranks(line) == (pytest.approx(1.0, abs=0.05), pytest.approx(1.0, abs=0.05))
    assert math.isnan(ranks(sums_of(torch.full((3, 4, 3), math.nan)))[0])


def test_correlation_is_that_of_different_dimensions() -> None:
    x = features()
    mixed = x @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    truth = torch.corrcoef(mixed.flatten(0, 1).T)
    off = truth[~torch.eye(8, dtype=torch.bool)]
    assert correlation(sums_of(mixed)) == pytest.approx(float(off.square().mean().sqrt()), rel=1e-3)
    same = x[..., :1].expand(-1, -1, 3) * torch.tensor([1.0, 2.0, 3.0])
    assert correlation(sums_of(same)) == pytest.approx(1.0, abs=1e-4)
    still = torch.cat([x, torch.zeros(6, 32, 1)], -1)
    assert correlation(sums_of(still)) == pytest.approx(correlation(sums_of(x)), rel=1e-4), "left out"
    assert torch.allclose(
        covariance(sums_of(mixed)).float(), mixed.flatten(0, 1).T.cov(correction=0), atol=1e-3
    )


def guess_of(said: torch.Tensor, wanted: torch.Tensor) -> GuessSums:
    """(C, N, D) each; the copy answers with zeros."""
    flat = said.flatten(0, 1), wanted.flatten(0, 1)
    tokens = torch.arange(said.shape[1]).repeat(len(said))
    guess = Guess(
        *flat,
        torch.arange(len(tokens)),
        tokens,
        lambda p: (p - flat[1]).abs().mean(),
        lambda: torch.zeros_like(flat[1]),
    )
    return guess_sums(guess, fixed_positions(said.shape[1]))


def test_what_is_explained_is_the_share_of_the_variance_across_clips() -> None:
    wanted = features()
    noise = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    fixed = fixed_positions(32)
    truth = 1 - float(noise[:, fixed].square().sum() / (wanted - wanted.mean(0))[:, fixed].square().sum())
    assert explained(guess_of(wanted + noise, wanted)) == pytest.approx(truth, rel=1e-4)
    assert explained(guess_of(wanted, wanted)) == pytest.approx(1.0)
    of_place = wanted.mean(0).expand_as(wanted)
    assert explained(guess_of(of_place, wanted)) == pytest.approx(0.0, abs=1e-5), "the same for every clip"


def test_a_token_that_several_masks_hide_is_one_sample() -> None:
    """One clip under two masks cannot be compared with itself; of several clips, copies change nothing."""
    wanted, said = features(), features() + features().roll(1, 0)

    def twice(x: torch.Tensor, clips: int) -> torch.Tensor:
        return x[:clips].flatten(0, 1).repeat(2, 1)

    def sums(clips: int) -> GuessSums:
        source = torch.arange(32 * clips).repeat(2)
        both = twice(said, clips), twice(wanted, clips)
        guess = Guess(*both, source, source % 32, lambda p: p.mean(), lambda: both[1])
        return guess_sums(guess, fixed_positions(32))

    assert math.isnan(explained(sums(1)))
    assert explained(sums(6)) == pytest.approx(explained(guess_of(said, wanted)), rel=1e-5)


def test_trivial_answers_and_alignment() -> None:
    said, wanted = features(), features().roll(1, 0)
    count, own, mean_token, copy, tokens, cosine = guess_of(said, wanted).scalars.tolist()
    mean = wanted.flatten(0, 1).mean(0)
    assert own == pytest.approx(float((said - wanted).abs().mean()), rel=1e-5)
    assert mean_token == pytest.approx(float((mean - wanted).abs().mean()), rel=1e-5)
    assert copy == pytest.approx(float(wanted.abs().mean()), rel=1e-5)
    assert count == 1 and cosine / tokens == pytest.approx(
        float(F.cosine_similarity(said, wanted, dim=-1).mean()), rel=1e-4
    )


@pytest.mark.parametrize("name", KINDS)
def test_an_objective_says_its_own_loss_of_its_own_guess(name: str) -> None:
    """The same function that judges trivial answers; regularisers and losses of seen tokens left out."""
    config = config_of(name)
    _, _, output = passed(config, small_batch(config))
    losses = output.guess.losses()
    part = {"action": "teacher_forcing", "contrastive": "info_nce"}.get(name)
    if part is None and name != "states" and len(output.parts) > 1:
        part_loss = sum(v for k, v in output.parts.items() if k.startswith("mask")) / sum(
            k.startswith("mask") for k in output.parts
        )
    else:
        part_loss = output.parts[part] if part else output.loss.detach()
    assert float(losses["prediction"]) == pytest.approx(float(part_loss), rel=1e-4)
    assert all(math.isfinite(float(loss)) for loss in losses.values())
    assert not any(loss.requires_grad for loss in losses.values())


def test_the_nearest_seen_token_is_found_as_by_hand() -> None:
    config = config_of("masked")
    masks, grid = small_batch(config).masks, config.grid
    found = nearest_kept(masks, grid)

    def place(token: int) -> tuple[int, int, int]:
        return token // (grid[1] * grid[2]), token // grid[2] % grid[1], token % grid[2]

    kept = masks.kept_M.tolist()
    for hidden, chosen in list(zip(masks.hidden_P.tolist(), found.tolist(), strict=True))[::7]:
        own = [k for k in kept if k // masks.num_tokens == hidden // masks.num_tokens]
        distance = {k: math.dist(place(k % masks.num_tokens), place(hidden % masks.num_tokens)) for k in own}
        assert distance[kept[chosen]] == min(distance.values())


def test_of_a_hidden_future_the_last_seen_frame_is_copied() -> None:
    config = config_of("future")
    masks, (_, rows, columns) = small_batch(config).masks, config.grid
    for hidden, chosen in zip(masks.hidden_P, masks.kept_M[nearest_kept(masks, config.grid)], strict=True):
        assert int(hidden) % (rows * columns) == int(chosen) % (rows * columns), "the same place"
        sequence = int(hidden) // masks.num_tokens
        last = max(int(k) for k in masks.kept_M if int(k) // masks.num_tokens == sequence)
        assert int(chosen) // (rows * columns) == last // (rows * columns), "of the last moment"


def test_whose_spread_is_judged_is_written_down() -> None:
    assert judged_features([{"health/context_std_start": 1.0}]) == "context"
    assert judged_features([{"health/target_std_untrained": 1.0}]) == "target"
    assert judged_features([]) == "target"
