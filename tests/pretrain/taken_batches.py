"""Batches taken from the loader in a test, with everything that is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pretrain.config import RunConfig, plan
from pretrain.data.stream import Batches
from pretrain.objective.base import Batch

CPU = torch.device("cpu")


@contextmanager
def opened(config: RunConfig, *, world: int = 1, rank: int = 0, step: int = 0) -> Iterator[Batches]:
    batches = Batches(plan(config, world), rank, CPU)
    batches.seek(step, step * config.train.global_batch)
    try:
        yield batches
    finally:
        batches.close()


def taken(config: RunConfig, steps: int, **where: int) -> list[list[dict[str, Any]]]:
    """Everything in each step's micro-batches, copied before the next is taken."""
    laid_out = plan(config, where.get("world", 1))
    with opened(config, **where) as batches:
        return [[copied(batch) for batch in batches.take(laid_out.micro_batches)] for _ in range(steps)]


def copied(batch: Batch) -> dict[str, Any]:
    found = {
        "step": batch.step,
        "positions": batch.positions,
        "keys": batch.keys,
        "bad": batch.bad,
        "clips": batch.clips.clone(),
        "kept": batch.masks.kept_M.clone(),
        "hidden": batch.masks.hidden_P.clone(),
        "lengths": (batch.masks.kept_lengths, batch.masks.hidden_lengths),
    }
    return found | {"states": batch.states, "actions": batch.actions}


def assert_equal(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip((b for s in ours for b in s), (b for s in theirs for b in s), strict=True):
        for name, value in our.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, their[name]), name
            else:
                assert value == their[name]


def keys_of(config: RunConfig, steps: int, **where: int) -> list[str]:
    return [key for step in taken(config, steps, **where) for batch in step for key in batch["keys"]]
