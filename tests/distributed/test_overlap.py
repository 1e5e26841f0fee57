"""Gradients that are reduced beside the backward: the same steps, to the last bit.

Over gloo a collective is waited for where it is called, and streams are none: what differs here is which
gradients go into which buffer, when, and in which order. That on CUDA no buffer is written while it is read,
these tests cannot tell (docs/decisions/0020-overlap.md).
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest

from pretrain.config import RunConfig
from tests.distributed.rank_jobs import on_ranks

pytestmark = pytest.mark.distributed


class Case(NamedTuple):
    stage: int
    forwards: int
    precision: str = "fp32"
    in_fp32: bool = False


SAME = [
    *(Case(stage, forwards) for stage, forwards in product((1, 2, 3), (1, 2))),
    *(Case(stage, 2, "bf16", in_fp32) for in_fp32, stage in product((False, True), (1, 2, 3))),
]


MEMORY = [(Case(1, 1, "bf16"), False), (Case(1, 1, "bf16"), True), (Case(1, 1, "bf16", True), True)]


def memory_job(case: Case, overlaps: bool) -> dict[str, Any]:
    """A step whose bytes are weights', most of them; all gradients fit in a buffer."""
    return {"config": job_of(case, overlaps)["config"], "measures_step": True}


def job_of(case: Case, overlaps: bool | None) -> dict[str, Any]:
    config = RunConfig.model_validate(
        {
            "name": "overlap",
            "data": {"shards": "nowhere", "frames": 4, "size": 32},
            "model": {
                "encoder": {"preset": "vit_tiny", "depth": 2},
                "predictor": {"depth": 1, "width": 48, "heads": 2},
            },
            "optim": {"warmup_steps": 1, "clip_norm": 0.1},
            "train": {
                "steps": 2,
                "global_batch": 2 * case.forwards,
                "micro_batch": 1,
                "precision": case.precision,
            },
            "strategy": {
                "kind": "deepspeed",
                "zero_stage": case.stage,
                "overlap_comm": overlaps,
                "reduce_in_fp32": case.in_fp32,
            },
        }
    )
    return {"config": config.model_dump(mode="json"), "bucket": 40_000, "trains_noise": True}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two ranks came to, by case and overlap; then what they held, by MEMORY."""
    pairs = list(product(SAME, (False, True)))
    jobs = [job_of(*pair) for pair in pairs] + [memory_job(*each) for each in MEMORY]
    return list(on_ranks(2, tmp_path_factory.mktemp("overlap"), jobs))


@pytest.fixture(scope="module")
def found(told: list[Any]) -> dict[tuple[Case, bool], dict[str, Any]]:
    return dict(zip(product(SAME, (False, True)), told, strict=False))


@pytest.mark.parametrize("case", SAME)
def test_losses_and_weights_are_equal_bit_for_bit(
    found: dict[tuple[Case, bool], dict[str, Any]], case: Case
) -> None:
    off, on = found[case, False]["ranks"], found[case, True]["ranks"]
    assert len(off) == len(on) == 2 and len(off[0]["losses"]) == 2 * case.forwards
    assert on == off
    assert off[0]["losses"] != off[1]["losses"], "each rank has clips of its own"


def test_zero_1_reduces_in_the_backward_only_where_it_overlaps(
    found: dict[tuple[Case, bool], dict[str, Any]],
) -> None:
    for case in SAME[:2]:
        off, on = found[case, False], found[case, True]
        assert off["in_backward"] == {} and off["called"]["allreduce float32"] > 10
        assert on["in_backward"]["allreduce float32"] > 10


def test_bf16_is_summed_over_ranks_in_float32_where_that_is_asked(
    found: dict[tuple[Case, bool], dict[str, Any]],
) -> None:
    for stage, overlaps in product((1, 2, 3), (False, True)):
        kinds = {
            in_fp32: {
                dtype
                for name in found[Case(stage, 2, "bf16", in_fp32), overlaps]["called"]
                for kind, dtype in [name.split()]
                if kind in ("allreduce", "reduce_scatter_base", "reduce_scatter_tensor")
            }
            for in_fp32 in (False, True)
        }
        assert kinds == {False: {"bfloat16"}, True: {"float32"}}, (stage, overlaps)
        rounded, exact = (found[Case(stage, 2, "bf16", way), overlaps]["ranks"] for way in (False, True))
        # ZeRO-1 keeps bf16 gradients, and of two ranks' a sum in bf16 is rounded once as well.
        assert (rounded == exact) is (stage == 1), (stage, overlaps)


def test_what_overlapping_and_float32_take_of_memory_is_in_the_formula(told: list[Any]) -> None:
    """A second buffer of bf16; while it is reduced, its float32."""
    seen, by_formula = (
        [max(max(rank[what].values()) for rank in ranks) for ranks in told[-len(MEMORY) :]]
        for what in ("phases", "formula")
    )
    assert by_formula[1] > 1.1 * by_formula[0] and by_formula[2] > 1.1 * by_formula[1]
    assert seen == pytest.approx(by_formula, rel=0.09)
