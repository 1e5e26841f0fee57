"""What a rank holds at each stage, counted tensor by tensor over two ranks, against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.rank_jobs import on_ranks
from tests.distributed.test_live_step import Case, check, job
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed
MODEL = {
    "encoder": {"preset": "vit_tiny", "patch": 16},
    "predictor": {"depth": 2, "width": 96, "heads": 2},
}
# (ZeRO stage, precision, forwards a step, optimizer on the host)
CASES = [
    (0, "fp32", 1, False),
    (1, "bf16", 3, False),
    (2, "bf16", 1, False),
    (3, "bf16", 1, False),
    (2, "bf16", 1, True),
]


STEPS: list[Case] = [(1, "bf16", 1, False), (3, "bf16", 1, True)]


def test_bytes_of_a_rank_are_those_of_the_formula(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held; and in a whole step, with activations, the most at once, and what collectives work on."""
    jobs: list[dict[str, Any]] = []
    for stage, precision, forwards, offloads in CASES:
        train = {"precision": precision, "global_batch": 4 * forwards, "micro_batch": 2}
        strategy = {"kind": "deepspeed", "zero_stage": stage, "offload_optimizer": offloads}
        config = tiny_config(small_dataset, tmp_path, model=MODEL, train=train, strategy=strategy)
        jobs.append({"config": config.model_dump(mode="json"), "measures_memory": True})
    found: Any = on_ranks(2, tmp_path, jobs + [job(case, size=64, depth=2) for case in STEPS])
    for case, ranks in zip(CASES, found, strict=False):
        for name in ("always", "most"):
            seen = max(rank[name] for rank in ranks)
            assert seen == pytest.approx(ranks[0]["formula"][name], rel=0.06), (case, name)
    for step, ranks in zip(STEPS, found[len(CASES) :], strict=True):
        check(step, ranks, capsys)
