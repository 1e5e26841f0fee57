"""Schedules by their end points and by numbers worked out by hand; plans for a world size."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError
from pretrain.config import plan
from pretrain.schedule import knobs_at
from tests.small_dataset import tiny_config


def test_warm_up_then_constant() -> None:
    config = tiny_config(Path("d"), Path("o"), optim={"lr": 1.0, "start_lr": 0.2, "warmup_steps": 4})
    assert [knobs_at(step, config).lr for step in range(6)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_cosine_ends_where_it_is_told() -> None:
    optim = {"lr": 1.0, "final_lr": 0.2, "warmup_steps": 0, "weight_decay": 0.04, "final_weight_decay": 0.4}
    config = tiny_config(Path("d"), Path("o"), optim=optim, train={"steps": 11})
    lrs = [knobs_at(step, config).lr for step in range(11)]
    assert (lrs[0], lrs[5], lrs[10]) == pytest.approx((1.0, 0.6, 0.2))
    assert lrs == sorted(lrs, reverse=True)
    assert knobs_at(0, config).weight_decay == pytest.approx(0.04)
    assert knobs_at(10, config).weight_decay == pytest.approx(0.4)


def test_momentum_ramps_linearly() -> None:
    config = tiny_config(
        Path("d"), Path("o"), target={"momentum": {"start": 0.9, "end": 1.0}}, train={"steps": 11}
    )
    assert [knobs_at(step, config).momentum for step in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 4), (2, 2), (4, 1)])
def test_a_plan_splits_the_global_batch(world: int, micro_batches: int) -> None:
    config = tiny_config(
        Path("d"), Path("o"), train={"global_batch": 8, "micro_batch": 2}, strategy={"kind": "deepspeed"}
    )
    assert plan(config, world).micro_batches == micro_batches


def test_an_impossible_split_names_the_nearest_possible_batches() -> None:
    config = tiny_config(
        Path("d"), Path("o"), train={"global_batch": 8, "micro_batch": 2}, strategy={"kind": "deepspeed"}
    )
    with pytest.raises(ConfigError, match=r"train.global_batch is 8: need .* 2 × 3 ranks = 6; try 6 or 12"):
        plan(config, 3)
