"""Which blocks are computed again for a budget, and that no loss or gradient depends on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data_pipeline.errors import ConfigError
from pretrain.activations import activations, most_activations
from pretrain.config import RunConfig
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, TubeMaskConfig
from pretrain.flops import Again, flops_of, recomputed_of
from pretrain.mask_lengths import most_kept_and_hidden
from pretrain.masks import sample_masks
from pretrain.objective.make import first_encoder
from pretrain.recompute import again_at, fewest, settled, told, with_again, with_all_again
from tests.pretrain.small_objective import KINDS, config_of, make, small_batch, small_config

pytestmark = pytest.mark.usefixtures("one_thread")


LARGE: dict[str, Any] = {"encoder": {"depth": 5}, "predictor": {"depth": 4}}


def auto(memory: int | str, **sections: Any) -> RunConfig:
    train = {"global_batch": 4, "micro_batch": 4, "precision": "fp32"}
    given = {"kind": "single", "activation_checkpointing": "auto", "activation_memory": memory}
    return small_config(strategy=given, train=train, **LARGE, **sections)


def gradients(config: RunConfig, encoder: Again, predictor: Again) -> list[torch.Tensor | None]:
    """The loss and every gradient of a small batch, two pictures of it where they are of their own kind."""
    objective = make(config)
    objective.recompute_blocks(encoder, predictor)
    pictures = (False, True, False) if config.model.encoder.pictures == "own" else ()
    batch = small_batch(config, pictures=pictures)
    target = None if config.target.kind == "online" else first_encoder(objective, config)
    loss = objective(batch, None if target is None else objective.targets(target, batch)).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in objective.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_loss_and_gradients_depends_on_what_is_computed_again(kind: str) -> None:
    config = config_of(kind)
    plain = gradients(config, Again(), Again())
    assert sum(each is not None for each in plain) > 10
    for encoder, predictor in ((1, 1), (2, 3), (3, 0), (0, 4), (4, 4)):
        found = gradients(config, again_at(encoder, 2), again_at(predictor, 2))
        for one, other in zip(plain, found, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)


def test_what_is_taken_is_the_cheapest_of_all_pairs_that_fit() -> None:
    """Beside a search of every pair, over budgets from none to all."""
    config = auto("1GB")
    masks = most_kept_and_hidden(config.objective.masks, config.grid, 4)[0]
    pairs = [
        with_again(config, again_at(encoder, 5), again_at(predictor, 4))
        for encoder in range(11)
        for predictor in range(9)
    ]
    bytes_of = [most_activations(each, "cpu").most for each in pairs]
    costs = [flops_of(each, masks).recomputed for each in pairs]
    for budget in torch.linspace(min(bytes_of), max(bytes_of), 12).tolist():
        found = settled(auto(math.ceil(budget)), "cpu")
        assert most_activations(found, "cpu").most <= math.ceil(budget)
        least = min(c for c, size in zip(costs, bytes_of, strict=True) if size <= math.ceil(budget))
        assert flops_of(found, masks).recomputed == pytest.approx(least)


def test_a_budget_for_all_recomputes_nothing_and_is_settled_once() -> None:
    found = settled(auto("10GB"), "cpu")
    assert found.strategy.activation_checkpointing is False
    assert settled(found, "cpu") is found
    assert "nothing is computed again; activations take up to" in told(auto("10GB"), found, "cpu")


def test_a_smaller_budget_never_computes_less_again_and_a_sentence_says_what() -> None:
    most = most_activations(with_again(auto("1GB"), Again(), Again()), "cpu").most
    least = most_activations(with_all_again(auto("1GB")), "cpu").most
    before = -1.0
    masks = most_kept_and_hidden(auto("1GB").objective.masks, auto("1GB").grid, 4)[0]
    for share in (1.0, 0.8, 0.5, 0.2, 0.0):
        asked = auto(math.ceil(least + share * (most - least)))
        found = settled(asked, "cpu")
        assert flops_of(found, masks).recomputed >= before
        before = flops_of(found, masks).recomputed
    sentence = told(
        auto(math.ceil((most + least) / 2)), settled(auto(math.ceil((most + least) / 2)), "cpu"), "cpu"
    )
    assert "of 5 encoder blocks" in sentence and "of 4 predictor blocks" in sentence
    assert "more operations; activations take up to" in sentence and sentence.endswith("MB a rank")


def test_a_budget_below_all_is_refused_with_one_that_is_enough() -> None:
    with pytest.raises(
        ConfigError, match=r"strategy\.activation_memory.*with all blocks computed again"
    ) as refused:
        settled(auto("1KB"), "cpu")
    offered = str(refused.value.problems[0].try_[0])
    assert most_activations(settled(auto(offered), "cpu"), "cpu").most <= float(offered[:-2]) * 1e6


def test_a_frozen_encoder_is_not_among_what_is_computed_again() -> None:
    config = config_of("action")
    found = fewest(config, lambda each: sum(recomputed_of(each)[1]) > 0)
    assert found is not None and recomputed_of(found) == (Again(), Again(0, 1))


def test_old_configs_mean_what_they_did() -> None:
    for is_on, depths in ((False, (0, 0)), (True, (2, 2))):
        config = small_config(strategy={"kind": "deepspeed", "activation_checkpointing": is_on})
        assert tuple(each.whole for each in recomputed_of(config)) == depths
        assert not any(each.mlps for each in recomputed_of(config))


@pytest.mark.parametrize(
    ("strategy", "key"),
    [
        ({"activation_checkpointing": "auto"}, "strategy.activation_memory"),
        ({"activation_checkpointing": True, "activation_memory": "4GB"}, "strategy.activation_memory"),
        ({"recomputed_blocks": {"encoder": 1}}, "strategy.recomputed_blocks"),
        (
            {"activation_checkpointing": True, "recomputed_blocks": {"encoder": 2, "encoder_mlps": 1}},
            "strategy.recomputed_blocks.encoder",
        ),
        (
            {"activation_checkpointing": True, "recomputed_blocks": {"encoder_mlps": 99}},
            "strategy.recomputed_blocks.encoder_mlps",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(strategy: dict[str, Any], key: str) -> None:
    assert [problem[0] for problem in small_config(strategy={"kind": "deepspeed"} | strategy).problems()] == [
        key
    ]


def test_a_size_is_no_yes_or_no_and_is_told_in_a_unit_that_fits() -> None:
    with pytest.raises(ValidationError, match="a number of bytes, or a size such as 40GB"):
        auto(True)
    with pytest.raises(ConfigError, match=r"strategy\.activation_memory is '1B'"):
        settled(auto(1), "cpu")
    with pytest.raises(ConfigError, match=r"strategy\.activation_memory is '2\.5kB'"):
        settled(auto(2500), "cpu")


MASKS: dict[str, Any] = {
    "as published": (
        BlockMaskConfig(blocks=8, spatial_scale=(0.15, 0.15)),
        BlockMaskConfig(blocks=2, spatial_scale=(0.7, 0.7)),
    ),
    "sizes of each clip": (BlockMaskConfig(blocks=3, spatial_scale=(0.1, 0.5), sizes="clip"),),
    "a future": (FutureMaskConfig(past=(0.2, 0.8)),),
    "tubes": (TubeMaskConfig(hidden=0.9),),
}


@pytest.mark.parametrize("clips", [1, 4, 24])
@pytest.mark.parametrize("name", MASKS)
def test_no_batch_that_is_drawn_keeps_or_hides_more_than_is_planned_for(name: str, clips: int) -> None:
    masks, grid = MASKS[name], (8, 16, 16)
    most, least = most_kept_and_hidden(masks, grid, clips)
    kept = []
    for step in range(240 // clips):
        drawn = sample_masks(masks, grid, 5, step, range(step * clips, (step + 1) * clips))
        kept.append(sum(drawn.kept_lengths))
        assert max(drawn.kept_lengths) <= max(most.kept_lengths)
    assert sum(least.kept_lengths) <= min(kept) and max(kept) <= sum(most.kept_lengths)
    if clips == 24:
        assert sum(most.kept_lengths) < 1.5 * max(kept), "and not much more"


def test_moments_of_a_drawn_batch_are_within_what_is_planned_for() -> None:
    config = auto("1GB")
    plain = with_again(config, Again(), Again())
    most = most_activations(plain, "cpu").most
    for step in range(30):
        masks = sample_masks(config.objective.masks, config.grid, 3, step, range(4 * step, 4 * step + 4))
        assert 0.4 * most < activations(plain, masks, "cpu").most <= most
