"""`foreframe estimate` against the formulas that others publish, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import ConfigError
from launch.cli import app
from launch.estimate import Estimate, estimate
from tests.pretrain.small_objective import small_config


def of(ranks: int, stage: int, precision: str = "bf16", forwards: int = 1, **sections: Any) -> Estimate:
    train = {"global_batch": ranks * forwards, "micro_batch": 1, "precision": precision}
    strategy = sections.pop("strategy", {"kind": "deepspeed", "zero_stage": stage})
    return estimate(small_config(train=train, strategy=strategy, **sections), ranks)


def per_weight(found: Estimate, *parts: str) -> float:
    """Bytes a trained weight of the strategy that is configured."""
    (own,) = (column.held for column in found.columns if column.is_own)
    return sum(float(getattr(own, part)) for part in parts) / found.trained


@pytest.mark.parametrize("ranks", [1, 4])
def test_weights_gradients_and_optimizer_are_those_of_the_paper(ranks: int) -> None:
    """ZeRO, table 1: 2 Ψ + 2 Ψ + K Ψ with K = 12, of which each stage shards more."""
    parts = ("weights", "gradients", "master", "optimizer")
    expected = {1: 2 + (2 + 12) / ranks, 2: 2 + (2 + 12) / ranks, 3: (2 + 2 + 12) / ranks}
    for stage, bytes_each in expected.items():
        assert per_weight(of(ranks, stage), *parts) == pytest.approx(bytes_each, rel=1e-3)
    assert per_weight(of(ranks, 0, "fp32"), *parts) == pytest.approx(16, rel=1e-3)
    one = of(1, 0, "fp32", strategy={"kind": "single"})
    assert per_weight(one, *parts) == pytest.approx(16, rel=1e-3)


def test_a_target_takes_two_bytes_and_a_share_of_four() -> None:
    """2 + 4/N bytes a target weight where it is whole on every rank, 6/N in shards; nothing without one."""
    for stage, bytes_each in ((2, 2 + 4 / 64), (3, 6 / 64)):
        found = of(64, stage)
        share = per_weight(found, "target", "average") * found.trained / found.target
        assert share == pytest.approx(bytes_each, rel=0.05)
    without = of(4, 1, target={"kind": "online"})
    assert without.target == 0 and per_weight(without, "target", "average") == 0


def test_sums_of_many_forwards_are_float32_where_they_can_be() -> None:
    assert per_weight(of(4, 2, forwards=3), "gradients") == pytest.approx(4 / 4, rel=1e-3)
    assert per_weight(of(4, 3, forwards=3), "gradients") == pytest.approx(4 / 4, rel=1e-3)
    assert per_weight(of(4, 1, forwards=3), "gradients") == pytest.approx(2, rel=1e-3)


def test_a_frozen_encoder_is_not_trained() -> None:
    objective = {"kind": "action_latent", "action_size": 3, "state_size": 5}
    found = of(2, 1, objective=objective, target={"kind": "frozen"})
    whole = of(2, 1)
    assert found.target == whole.target
    assert found.trained < whole.trained - whole.target + whole.target // 2
    assert found.checkpoint == 12 * found.trained + 4 * found.target


def test_the_command_prints_a_table_or_json_and_refuses_what_cannot_be_split() -> None:
    runner = CliRunner()
    given = ["estimate", "configs/train/vjepa2-vitl16.yaml"]
    printed = runner.invoke(app, [*given, "--nproc", "8", "--nnodes", "16"])
    assert printed.exit_code == 0, printed.output
    assert (
        "326.0 M weights trained, 303.9 M in the target; bf16, 128 ranks, 1 forward a step" in printed.output
    )
    assert "ZeRO-1 *" in printed.output and "Not counted: activations" in printed.output
    assert "A clip takes 5.09 TFLOP forward and backward, a step of 3,072 clips 15.6 PFLOP" in printed.output
    assert "122 TFLOP a rank" in printed.output and "On the device 5.93 TFLOP a clip" in printed.output
    plain = json.loads(runner.invoke(app, [*given, "--json"]).stdout)
    assert [column["name"] for column in plain["columns"]] == ["ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert plain["flops_a_step"] == 3072 * plain["flops"] < 3072 * plain["hardware_flops"]
    for column in plain["columns"]:
        assert column["held"]["most"] > column["held"]["always"] > 0
    refused = runner.invoke(app, [*given, "--nproc", "7"])
    assert isinstance(refused.exception, ConfigError)
    assert [problem.key for problem in refused.exception.problems] == ["train.global_batch"]
