"""What changes how a step is computed, and not what it computes: stages, ranks, forwards, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.train import run_train
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.rank_jobs import BATCH, on_ranks
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def one_process(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the same steps on one process without DeepSpeed."""
    out = tmp_path_factory.mktemp("single")
    run = run_train(tiny_config(small_dataset, out, train=BATCH), quiet=True).run
    return [line["loss"] for line in read_metrics(run)]


# (ranks, settings): what changes how a step is computed, and not what it computes.
SAME: dict[str, tuple[int, dict[str, Any]]] = {
    "stage 0": (2, {"strategy": {"zero_stage": 0}}),
    "stage 1": (2, {}),
    "stage 2": (2, {"strategy": {"zero_stage": 2}}),
    "stage 3": (2, {"strategy": {"zero_stage": 3}}),
    "blocks computed again": (2, {"strategy": {"activation_checkpointing": True}}),
    "blocks computed again, stage 3": (2, {"strategy": {"zero_stage": 3, "activation_checkpointing": True}}),
    "some blocks computed again": (
        2,
        {
            "strategy": {
                "activation_checkpointing": True,
                "recomputed_blocks": {"encoder": 1, "encoder_mlps": 1, "predictor_mlps": 1},
            }
        },
    ),
    "some blocks computed again, stage 3": (
        2,
        {
            "strategy": {
                "zero_stage": 3,
                "activation_checkpointing": True,
                "recomputed_blocks": {"encoder": 1, "encoder_mlps": 1, "predictor_mlps": 1},
            }
        },
    ),
    "optimizer on the host": (2, {"strategy": {"offload_optimizer": True}}),
    "optimizer on the host, stage 3": (2, {"strategy": {"zero_stage": 3, "offload_optimizer": True}}),
    "optimizer on the host, bf16": (
        2,
        {"strategy": {"zero_stage": 2, "offload_optimizer": True}, "train": {"precision": "bf16"}},
    ),
    "one forward a step": (2, {"train": {"micro_batch": 6}}),
    "six forwards a step": (2, {"train": {"micro_batch": 1}}),
    "one forward a step, stage 3": (2, {"strategy": {"zero_stage": 3}, "train": {"micro_batch": 6}}),
    "bf16": (2, {"train": {"precision": "bf16"}}),
    "bf16, stage 2": (2, {"strategy": {"zero_stage": 2}, "train": {"precision": "bf16"}}),
    "bf16, stage 3": (2, {"strategy": {"zero_stage": 3}, "train": {"precision": "bf16"}}),
    "many buckets": (2, {"bucket": 5000}),
    "many buckets, stage 2": (2, {"bucket": 5000, "strategy": {"zero_stage": 2}}),
    "many buckets, stage 3": (2, {"bucket": 5000, "strategy": {"zero_stage": 3}}),
    "three ranks, stage 0": (3, {"strategy": {"zero_stage": 0}}),
    "three ranks, stage 1": (3, {}),
    "three ranks, stage 2": (3, {"strategy": {"zero_stage": 2}}),
    "three ranks, stage 3": (3, {"strategy": {"zero_stage": 3}}),
}


def job_of(dataset: Path, out: Path, *, bucket: int | None = None, **settings: Any) -> dict[str, Any]:
    train = {**BATCH, **settings.pop("train", {})}
    strategy = {"kind": "deepspeed", "zero_stage": 1, **settings.pop("strategy", {})}
    config = tiny_config(dataset, out, train=train, strategy=strategy, **settings)
    return {"config": config.model_dump(mode="json"), "bucket": bucket}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_sharded_average_equals_a_plain_one_and_losses_equal_one_process(
    small_dataset: Path, tmp_path: Path, one_process: list[float], num_ranks: int
) -> None:
    cases = {name: settings for name, (ranks, settings) in SAME.items() if ranks == num_ranks}
    jobs = [job_of(small_dataset, tmp_path, **settings) for settings in cases.values()]
    for name, found in zip(cases, on_ranks(num_ranks, tmp_path, jobs), strict=True):
        assert found["ema_equal"], f"{name}: bit for bit, on every rank, after every step"
        tolerance = 2e-2 if "bf16" in name else 2e-5
        assert found["losses"] == pytest.approx(one_process, rel=tolerance), name
        assert found["norms_off"] < (2e-2 if "bf16" in name else 1e-3), name


def test_norms_are_told_where_a_rank_owns_no_part_of_the_encoder(small_dataset: Path, tmp_path: Path) -> None:
    """A predictor of most of the weights fills the last partitions alone."""
    model = {"predictor": {"depth": 6, "width": 96, "heads": 2}}
    (found,) = on_ranks(3, tmp_path, [job_of(small_dataset, tmp_path, model=model)])
    assert found["norms_off"] < 1e-3 and found["ema_equal"] and found["some_rank_has_no_encoder"]


def test_clipping_each_module_is_the_same_at_every_stage(small_dataset: Path, tmp_path: Path) -> None:
    optim = {"clip_norm": 0.05, "clip_per": "module"}
    cases: list[dict[str, Any]] = [
        *({"strategy": {"zero_stage": stage}} for stage in range(4)),
        {"strategy": {"zero_stage": 2, "offload_optimizer": True}},
        {"strategy": {"zero_stage": 3, "offload_optimizer": True}},
        {"strategy": {"zero_stage": 2}, "bucket": 5000},
        *({"strategy": {"zero_stage": stage}, "train": {"precision": "bf16"}} for stage in (1, 2, 3)),
    ]
    run = run_train(tiny_config(small_dataset, tmp_path, train=BATCH, optim=optim), quiet=True).run
    jobs = [job_of(small_dataset, tmp_path, optim=optim, **case) for case in cases]
    lines = read_metrics(run)
    for case, found in zip(cases, on_ranks(2, tmp_path, jobs), strict=True):
        is_rounded = "train" in case
        losses = [line["loss"] for line in lines]
        assert found["losses"] == pytest.approx(losses, rel=2e-2 if is_rounded else 2e-5), case
        norms = [line["optim/grad_norm"] for line in lines]
        assert found["norms"] == pytest.approx(norms, rel=5e-2 if is_rounded else 1e-4), case
        assert found["ema_equal"], case


def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(
    small_dataset: Path, tmp_path: Path
) -> None:
    """Weights, their average and the choice to skip are those of all ranks, at every stage."""
    jobs = [
        {**job_of(small_dataset, tmp_path, **settings), "poisoned": {"step": 2, "rank": 1}}
        for settings in (
            *({"strategy": {"zero_stage": stage}} for stage in range(4)),
            {"strategy": {"zero_stage": 1, "offload_optimizer": True}},
            {"strategy": {"zero_stage": 3, "offload_optimizer": True}},
            {"strategy": {"zero_stage": 3}, "train": {"precision": "bf16"}},
            {"strategy": {"zero_stage": 2}, "optim": {"clip_norm": 0.05, "clip_per": "module"}},
            {"strategy": {"zero_stage": 3}, "optim": {"clip_norm": 0.05, "clip_per": "module"}},
        )
    ]
    for job, found in zip(jobs, on_ranks(2, tmp_path, jobs), strict=True):
        what = job["config"]["strategy"], job["config"]["train"]["precision"]
        assert found["applied"] == [True, True, False, True], what
        assert found["agreed"] and found["ema_equal"], what


@pytest.fixture(scope="module")
def two_ranks_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps at ZeRO-1, saved; read only."""
    config = tiny_config(
        small_dataset,
        tmp_path_factory.mktemp("two"),
        train=BATCH,
        strategy={"kind": "deepspeed", "zero_stage": 1},
    )
    return run_train(config, nproc=2, quiet=True).run


def test_every_world_takes_over_what_another_has_written(two_ranks_run: Path, small_dataset: Path) -> None:
    """Weights, their averages and the target's, to the last bit, by three ranks and by other stages."""
    out = two_ranks_run.parent
    for ranks, stages in ((2, (0, 2, 3)), (3, (1, 3))):
        each = [job_of(small_dataset, out, strategy={"zero_stage": stage}) for stage in stages]
        jobs = [job | {"takes": str(two_ranks_run)} for job in each]
        assert on_ranks(ranks, out, jobs) == [{"differ": []}] * len(stages), ranks
