"""Into how large buffers gradients are cut, and what may be said of it in a config."""

from __future__ import annotations

from typing import Any

import pytest

from launch.config import read_config
from launch.outline import num_parameters
from pretrain.config import RunConfig, plan
from pretrain.memory import BUCKET, SMALLEST_BUCKET, held, reduced_at_once
from pretrain.objective.make import shapes_of
from pretrain.strategy.deepspeed import deepspeed_config
from tests.pretrain.small_objective import small_config

RECIPES = {"vjepa2-vitl16": 16, "vjepa2-vitg16": 16}


def of(recipe: str, *changed: str) -> RunConfig:
    return read_config(f"configs/train/{recipe}.yaml", list(changed), RunConfig)


@pytest.mark.parametrize(("recipe", "buffers"), RECIPES.items())
def test_of_large_models_all_but_a_sixteenth_is_reduced_beside_the_backward(
    recipe: str, buffers: int
) -> None:
    config = of(recipe, "strategy.overlap_comm=true")
    trained = sum(num_parameters(config).values())
    bucket = reduced_at_once(config, trained)
    assert -(-trained // bucket) == buffers
    largest = max(parameter.numel() for parameter in shapes_of(config)[0].parameters())
    assert largest < bucket < BUCKET, "a gradient that fits in no buffer is reduced alone"
    assert reduced_at_once(of(recipe), trained) == BUCKET


def test_small_models_are_not_cut_into_crumbs() -> None:
    config = of("vits16-16f", "strategy.overlap_comm=true")
    assert reduced_at_once(config, 22_000_000) == SMALLEST_BUCKET
    assert reduced_at_once(config, 1000) == 1000


def test_deepspeed_is_told_and_a_second_buffer_is_counted_at_stages_1_and_2() -> None:
    for stage, overlaps in ((0, None), (1, None), (1, True), (2, True), (3, None), (3, False)):
        strategy = {"kind": "deepspeed", "zero_stage": stage, "overlap_comm": overlaps}
        train = {"precision": "fp32", "global_batch": 2, "micro_batch": 1}
        laid_out = plan(small_config(strategy=strategy, train=train), 2)
        told = deepspeed_config(laid_out, 1_000_000)["zero_optimization"]
        assert told["overlap_comm"] is (stage == 3 if overlaps is None else overlaps)
        buffers = {0: 0}.get(stage, 2 if stage < 3 and overlaps else 1)
        assert held(laid_out, 1_000_000, 0).bucket == buffers * 4 * 1_000_000


@pytest.mark.parametrize(
    ("strategy", "precision", "words"),
    [
        ({"zero_stage": 0, "overlap_comm": True}, "fp32", "sums gradients when the backward has ended"),
        ({"zero_stage": 1, "reduce_in_fp32": True}, "fp32", "are summed in float32 as they are"),
    ],
)
def test_what_would_change_nothing_is_refused(strategy: dict[str, Any], precision: str, words: str) -> None:
    train = {"precision": precision, "global_batch": 2, "micro_batch": 1}
    config = small_config(strategy={"kind": "deepspeed", **strategy}, train=train)
    assert words in " ".join(need for _, _, need, _ in config.problems())
