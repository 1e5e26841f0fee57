"""`foreframe estimate` against the formulas that others publish, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import ConfigError, UsageError
from launch.cli import app
from launch.estimate import Estimate, Stated, estimate, gpu_of
from tests.pretrain.small_objective import small_config

VITG = ["estimate", "configs/train/vjepa2-vitg16.yaml"]


def of(ranks: int, stage: int, precision: str = "bf16", forwards: int = 1, **sections: Any) -> Estimate:
    train = {"global_batch": ranks * forwards, "micro_batch": 1, "precision": precision}
    strategy = sections.pop("strategy", {"kind": "deepspeed", "zero_stage": stage})
    config = small_config(train=train, strategy=strategy, **sections)
    return estimate(config, Stated(gpu_of("h100", None, None, None), 1, ranks))


def per_weight(found: Estimate, *parts: str) -> float:
    """Bytes a trained weight of the strategy that is configured."""
    own = found.columns[found.own].held
    return sum(float(getattr(own, part)) for part in parts) / found.weights.trained


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
        share = per_weight(found, "target", "average") * found.weights.trained / found.weights.target
        assert share == pytest.approx(bytes_each, rel=0.05)
    without = of(4, 1, target={"kind": "online"})
    assert without.weights.target == 0 and per_weight(without, "target", "average") == 0


def test_sums_of_many_forwards_are_float32_where_they_can_be() -> None:
    assert per_weight(of(4, 2, forwards=3), "gradients") == pytest.approx(4 / 4, rel=1e-3)
    assert per_weight(of(4, 3, forwards=3), "gradients") == pytest.approx(4 / 4, rel=1e-3)
    assert per_weight(of(4, 1, forwards=3), "gradients") == pytest.approx(2, rel=1e-3)


def test_what_is_not_stated_is_what_the_pages_were_drawn_with() -> None:
    stated = Stated(gpu_of("h100", None, None, None))
    figures = {"mfu": stated.mfu, "failures": stated.failures, "storage": stated.storage / 1e9}
    said = [word for name, figure in figures.items() for word in (f"--{name}", str(figure))]
    silent, spoken = (CliRunner().invoke(app, [*VITG, "--json", *words]).stdout for words in ([], said))
    assert json.loads(silent) == json.loads(spoken)
    told = CliRunner().invoke(app, ["estimate", "--help"], env={"COLUMNS": "300"}).output
    assert f"without it {stated.mfu}" in told


def test_a_frozen_encoder_is_not_trained() -> None:
    objective = {"kind": "action_latent", "action_size": 3, "state_size": 5}
    found, whole = of(2, 1, objective=objective, target={"kind": "frozen"}).weights, of(2, 1).weights
    assert found.target == whole.target
    assert found.trained < whole.trained - whole.target + whole.target // 2


def test_parts_of_the_work_add_up_to_the_whole() -> None:
    found = of(2, 1)
    assert list(found.parts) == [
        "context encoder", "tubelet embedding", "predictor", "heads and mask tokens", "target encoder",
    ]  # fmt: skip
    assert sum(part.model for part in found.parts.values()) == found.flops
    assert found.flops_a_step == 2 * found.flops


def test_the_command_prints_tables_or_json_and_refuses_what_cannot_be_split() -> None:
    runner = CliRunner()
    given = ["estimate", "configs/train/vjepa2-vitl16.yaml"]
    printed = runner.invoke(app, [*given, "--nproc", "8", "--nnodes", "16"])
    assert printed.exit_code == 0, printed.output
    assert (
        "326.0 M weights trained, 303.9 M in the target; bf16, 128 ranks, 1 forward a step" in printed.output
    )
    assert "on 16 nodes × 8 h100, on paper: nothing was run; 3,072 clips a step =" in printed.output
    assert "\n128 ranks × 1 forward × 24 clips\n" in printed.output
    assert max(map(len, printed.output.splitlines())) <= 100, "a terminal breaks what is longer"
    assert "ZeRO-1 *" in printed.output and "activations, at their most" in printed.output
    assert "A clip takes 5.09 TFLOP forward and backward, a step of 3,072 clips 15.6 PFLOP" in printed.output
    assert "122 TFLOP a rank" in printed.output and "On the device 5.93 TFLOP a clip" in printed.output
    same = runner.invoke(app, [*given, "--gpus-per-node", "8", "--nodes", "16"])
    assert same.output == printed.output
    plain = json.loads(runner.invoke(app, [*given, "--json"]).stdout)
    assert [column["name"] for column in plain["columns"]] == ["ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert plain["flops_a_step"] == 3072 * plain["flops"] < 3072 * plain["hardware_flops"]
    for column in plain["columns"]:
        assert column["held"]["most"] > column["held"]["always"] > 0
        assert column["most"] > column["held"]["always"] + 0.5 * column["activations"]
    refused = runner.invoke(app, [*given, "--nproc", "7"])
    assert isinstance(refused.exception, ConfigError)
    assert [problem.key for problem in refused.exception.problems] == ["train.global_batch"]


def test_no_line_is_too_wide_for_a_terminal_of_120() -> None:
    runner = CliRunner()
    for more in (["train.micro_batch=6", "--nodes", "64", "--nproc", "8", "--price", "2.5"], []):
        printed = runner.invoke(app, [*VITG, *more]).output
        assert max(map(len, printed.splitlines())) <= 120, max(printed.splitlines(), key=len)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--gpu", "nosuch"],
            "--gpu is 'nosuch': need h100, h200, b200, a100-80, a100-40, l40s, rtx4090 or cpu",
        ),
        (["--gpu", "cpu", "--tflops", "1"], "--gpu is cpu: need --memory too"),
        (["--mfu", "2"], "--mfu is 2: need a share of the peak, above 0 and at most 1"),
        (["--mfu", "0"], "--mfu is 0: need"),
        (["--mfu", "nan"], "--mfu is nan: need"),
        (["--price", "-1"], "--price is -1: need"),
        (["--failures", "-0.1"], "--failures is -0.1: need failures of a node a day"),
        (["--network", "0"], "--network is 0: need a number above 0"),
        (["--storage", "nan"], "--storage is nan: need a number above 0"),
        (["--tflops", "inf"], "--tflops is inf: need a number above 0"),
        (["--memory", "-5"], "--memory is -5: need a number above 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(options: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, [*VITG, *options])
    assert isinstance(refused.exception, UsageError)
    assert refused.exception.exit_code == 2 and words in str(refused.exception)


def test_ranks_that_the_micro_batch_does_not_suit_are_refused_with_one_that_does() -> None:
    refused = CliRunner().invoke(app, [*VITG, "--nodes", "64", "--gpus-per-node", "8"])
    assert isinstance(refused.exception, ConfigError)
    assert "train.micro_batch=6" in str(refused.exception)


def test_the_budget_that_is_named_makes_a_run_choose_the_blocks_that_are_named() -> None:
    given = ["strategy.activation_checkpointing=false", "train.global_batch=24"]
    plain = json.loads(CliRunner().invoke(app, [*VITG, *given, "--json"]).stdout)
    fewest = plain["columns"][0]["fewest"]
    assert not plain["columns"][0]["fits"] and 0 < fewest["share"] < 0.1
    printed = CliRunner().invoke(app, [*VITG, *given]).output
    budget = printed.partition("activation_memory=")[2].split()[0]
    auto = ["strategy.activation_checkpointing=auto", f"strategy.activation_memory={budget}"]
    found = json.loads(CliRunner().invoke(app, [*VITG, given[1], *auto, "--json"]).stdout)
    assert found["columns"][0]["fits"] and found["again"] == fewest["blocks"]


@pytest.mark.parametrize("clips", [1 << 24, 7 * 11 * 13 * 1000])
def test_a_batch_of_millions_is_worked_out_at_once(clips: int) -> None:
    """Only divisors that may fit are tried: the masks that are planned for others would fill memory."""
    found = of(1, 1, forwards=clips)
    own = found.columns[found.own]
    assert 0 < own.micro_batch <= own.room_recomputing and clips % own.micro_batch == 0


def test_what_no_cluster_has_is_refused_by_its_option() -> None:
    for option in ("--memory", "--tflops", "--storage", "--network"):
        found = CliRunner().invoke(app, [*VITG, option, "1e300"])
        assert isinstance(found.exception, UsageError) and option in str(found.exception)
    for setting in (
        "train.steps=1" + 400 * "0",
        "train.global_batch=99999999999",
        "train.micro_batch=99999999",
    ):
        found = CliRunner().invoke(app, [*VITG, setting])
        assert isinstance(found.exception, ConfigError) and "need at most" in str(found.exception)
