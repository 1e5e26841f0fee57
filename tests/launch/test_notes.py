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
    ("every", "saves", "words"),
    [
        (None, 100, ["probe.every is null", "only `foreframe probe` gives scores", "probe.every=100 scores"]),
        (2000, 100, ["more than train.steps=1000", "probe.every=100 scores each checkpoint"]),
        (250, 100, ["only one in 2 scored steps can be kept", "probe.every=200 scores none"]),
        (30, 100, ["only one in 10 scored steps can be kept", "probe.every=100 scores none"]),
        (200, 100, []),
        (100, 100, []),
    ],
)
def test_a_best_checkpoint_that_cannot_be_kept_is_named(
    every: int | None, saves: int, words: list[str]
) -> None:
    train: dict[str, Any] = {"precision": "fp32", "micro_batch": 1, "global_batch": 1, "steps": 1000}
    train |= {"checkpoint_every": saves}
    small = {"optim": {"warmup_steps": 10}, "probe": {"every": every}}
    found = notes(plan(small_config(train=train | {"keep_best": "linear top-1"}, **small), 1), [])
    assert len(found) == bool(words)
    assert all(word in found[0] for word in ["train.keep_best is 'linear top-1'", *words] if words)
    assert notes(plan(small_config(train=train, **small), 1), []) == [], "nothing is to be kept by it"


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
