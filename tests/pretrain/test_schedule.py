"""Schedules step by step against the published arithmetic; plans for a world size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import ConfigError
from pretrain.config import RunConfig, plan
from pretrain.schedule import Knobs, knobs_at
from tests.small_dataset import tiny_config


def run_of(**changes: Any) -> RunConfig:
    return tiny_config(Path("d"), Path("o"), **changes)


def problems_of(**changes: Any) -> set[str]:
    return {key for key, *_ in run_of(**changes).problems()}


def test_warm_up_then_constant() -> None:
    config = run_of(optim={"lr": 1.0, "start_lr": 0.2, "warmup_steps": 4})
    assert [knobs_at(step, config).lr for step in range(6)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_the_last_step_has_the_end_values_of_lr_and_weight_decay_and_the_first_the_start_of_momentum() -> (
    None
):
    optim = {"lr": 1.0, "decay": "cosine", "final_lr": 0.2, "weight_decay": 0.04, "final_weight_decay": 0.4}
    target = {"momentum": {"start": 0.9, "end": 1.0}}
    config = run_of(optim={**optim, "warmup_steps": 0}, target=target, train={"steps": 10})
    knobs = [knobs_at(step, config) for step in range(10)]
    assert (knobs[4].lr, knobs[9].lr) == pytest.approx((0.6, 0.2))
    assert [k.lr for k in knobs] == sorted((k.lr for k in knobs), reverse=True)
    assert knobs[9].weight_decay == pytest.approx(0.4)
    assert [knobs[step].momentum for step in (0, 5, 9)] == pytest.approx([0.9, 0.95, 0.99])


def test_a_stretched_schedule_ends_before_its_end_point() -> None:
    optim = {"lr": 1.0, "decay": "linear", "final_lr": 0.0, "warmup_steps": 0, "schedule_steps": 10}
    config = run_of(optim=optim, train={"steps": 8})
    assert [knobs_at(step, config).lr for step in (0, 3, 7)] == pytest.approx([0.9, 0.6, 0.2])


# Below, the published schedules once more, counted as the released code counts: lr and weight decay by the
# number of the step that is taken, momentum by the steps before it.
Reference = Iterator[tuple[float, float, float]]


def vjepa(run: int, length: int, warmup: int) -> Reference:
    """V-JEPA, arXiv:2404.08471, table 8: all ramps reach over 1.25 times the run."""
    for n in range(1, run + 1):
        over = (n - warmup) / (length - warmup)
        lr = 2e-4 + n / warmup * 4.25e-4
        if n >= warmup:
            lr = 1e-6 + (6.25e-4 - 1e-6) * (1 + math.cos(math.pi * over)) / 2
        weight_decay = 0.4 - 0.36 * (1 + math.cos(math.pi * n / length)) / 2
        yield lr, weight_decay, 0.998 + 0.002 * (n - 1) / length


def vjepa2_pretrain(run: int, warmup: int) -> Reference:
    """V-JEPA 2, arXiv:2506.09985, table 9, primary phase."""
    for n in range(1, run + 1):
        yield (1e-4 + n / warmup * 4.25e-4 if n < warmup else 5.25e-4), 0.04, 0.99925


def vjepa2_cooldown(run: int, length: int) -> Reference:
    """V-JEPA 2, table 9, cooldown phase, its ramp over 1.25 times the run as in the released code."""
    for n in range(1, run + 1):
        yield 5.25e-4 - (5.25e-4 - 1e-6) * n / length, 0.04, 0.99925


def vjepa2_ac(run: int, warmup: int, anneal: int) -> Reference:
    """V-JEPA 2-AC, appendix B.1."""
    for n in range(1, run + 1):
        up, down = n / warmup, (n - (run - anneal)) / anneal
        lr = 7.5e-5 + up * 3.5e-4 if n < warmup else 4.25e-4
        yield (lr if down < 0 else 4.25e-4 * (1 - down)), 0.04, 0.99925


VJEPA = {"lr": 6.25e-4, "start_lr": 2e-4, "decay": "cosine", "final_lr": 1e-6, "final_weight_decay": 0.4}
SCHEDULES = {
    "V-JEPA": (
        {**VJEPA, "warmup_steps": 120, "schedule_steps": 1125},
        {"start": 0.998, "end": 1.0},
        900,
        vjepa(900, 1125, 120),
    ),
    "V-JEPA 2": (
        {"lr": 5.25e-4, "start_lr": 1e-4, "warmup_steps": 120, "schedule_steps": 3000},
        {},
        2400,
        vjepa2_pretrain(2400, 120),
    ),
    "V-JEPA 2 cooldown": (
        {"lr": 5.25e-4, "decay": "linear", "final_lr": 1e-6, "warmup_steps": 0, "schedule_steps": 150},
        {},
        120,
        vjepa2_cooldown(120, 150),
    ),
    "V-JEPA 2-AC": (
        {
            "lr": 4.25e-4,
            "start_lr": 7.5e-5,
            "warmup_steps": 45,
            "decay": "linear",
            "final_lr": 0.0,
            "decay_steps": 45,
        },
        {},
        945,
        vjepa2_ac(945, 45, 45),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_equals_the_published_schedule(name: str) -> None:
    optim, momentum, steps, reference = SCHEDULES[name]
    config = run_of(
        optim={"weight_decay": 0.04, **optim},
        target={"momentum": {"start": 0.99925, "end": 0.99925, **momentum}},
        train={"steps": steps},
    )
    assert not config.problems()
    for step, (lr, weight_decay, moved) in enumerate(reference):
        found = knobs_at(step, config)
        assert found.lr == pytest.approx(lr, rel=1e-9, abs=1e-15), step
        assert found == Knobs(found.lr, pytest.approx(weight_decay), pytest.approx(moved)), step


@pytest.mark.parametrize(
    ("optim", "key"),
    [
        ({"final_lr": 0.1}, "optim.final_lr"),
        ({"decay_steps": 5}, "optim.decay_steps"),
        ({"decay": "cosine"}, "optim.final_lr"),
        ({"schedule_steps": 19}, "optim.schedule_steps"),
        ({"decay": "linear", "final_lr": 0.0, "warmup_steps": 8, "decay_steps": 13}, "optim.decay_steps"),
        ({"warmup_steps": 21, "schedule_steps": 25}, "optim.warmup_steps"),
    ],
)
def test_a_schedule_that_says_two_things_is_refused(optim: dict[str, object], key: str) -> None:
    assert key in problems_of(optim=optim, train={"steps": 20})


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 4), (2, 2), (4, 1)])
def test_a_plan_splits_the_global_batch(world: int, micro_batches: int) -> None:
    config = run_of(train={"global_batch": 8, "micro_batch": 2}, strategy={"kind": "deepspeed"})
    assert plan(config, world).micro_batches == micro_batches


def test_an_impossible_split_names_the_nearest_possible_batches() -> None:
    config = run_of(train={"global_batch": 8, "micro_batch": 2}, strategy={"kind": "deepspeed"})
    with pytest.raises(ConfigError, match=r"train.global_batch is 8: need .* 2 × 3 ranks = 6; try 6 or 12"):
        plan(config, 3)
