"""What a run says at its start of settings that may not be meant."""

from __future__ import annotations

from typing import Any

import pytest

from launch.notes import notes
from pretrain.config import plan
from tests.pretrain.small_objective import small_config


def test_actions_that_the_predictor_is_not_told_are_named() -> None:
    said = {}
    for size in (0, 2):
        config = small_config(
            {"kind": "future_latent", "action_size": size},
            train={"precision": "fp32", "micro_batch": 1, "global_batch": 1},
        )
        said[size] = notes(plan(config, 1), ["ay", "ax", "ax"])
    assert said[2] == []
    assert said[0] == [
        "the data has actions (ax, ay), which the predictor is not told: objective.action_size is 0"
    ]


@pytest.mark.parametrize(
    ("stage", "precision", "forwards", "is_said"),
    [(1, "bf16", 65, True), (1, "bf16", 64, False), (1, "fp32", 512, False), (2, "bf16", 512, False)],
)
def test_many_forwards_added_up_in_bf16_are_named(
    stage: int, precision: str, forwards: int, is_said: bool
) -> None:
    train: dict[str, Any] = {"precision": precision, "micro_batch": 1, "global_batch": 2 * forwards}
    strategy = {"kind": "deepspeed", "zero_stage": stage}
    found = notes(plan(small_config(train=train, strategy=strategy), 2), [])
    assert [f"{forwards} forwards" in sentence for sentence in found] == [True] * is_said
