"""Network, loader, checkpoints, other numbers of GPUs: `foreframe estimate` against simple arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.config import read_config
from launch.estimate import Estimate, Stated, estimate, gpu_of
from launch.estimate.gpus import GPUS
from launch.estimate.loading import BYTES, CPU_MS, CPU_MS_FLOATS, clip_cost
from launch.estimate.saving import best_interval_s, lost_share
from launch.estimate.stated import FAILURES, MFU
from launch.estimate.units import bytes_of, duration, operations, percent
from pretrain.config import RunConfig
from pretrain.flops import backward_share
from tests.pretrain.small_objective import small_config

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
H100 = gpu_of("h100", None, None, None)


def vitg(nodes: int = 64, gpu: str = "h100", *changed: str, **stated: Any) -> Estimate:
    config = read_config("configs/train/vjepa2-vitg16.yaml", ["train.micro_batch=6", *changed], RunConfig)
    return estimate(config, Stated(gpu_of(gpu, None, None, None), nodes, 8, **stated))


@pytest.fixture(scope="module")
def on_512() -> Estimate:
    return vitg(price=2.0)


def test_a_step_takes_what_its_flops_take_at_the_stated_share_of_the_peak(on_512: Estimate) -> None:
    expected = 3072 * on_512.flops / (512 * 0.38 * 989.4e12)
    assert on_512.speed.compute_s == pytest.approx(expected, rel=1e-9)
    assert on_512.speed.step_s == pytest.approx(expected + on_512.speed.network_s)
    assert on_512.speed.clips_per_s == pytest.approx(3072 / on_512.speed.step_s)
    days = on_512.steps * on_512.speed.step_s / 86_400
    assert days < on_512.days < 1.01 * days
    assert on_512.gpu_hours == pytest.approx(on_512.days * 24 * 512)
    assert on_512.cost == pytest.approx(2 * on_512.gpu_hours)


def test_the_share_of_the_peak_is_what_a_vit_g_reached_on_one_h100() -> None:
    found = json.loads((RESULTS / "gpu.json").read_text())
    (rows,) = (part["rows"] for part in found["parts"] if part["name"] == "large step")
    rows = {row["metric"]: row["ours"] for row in rows}
    clips, rate = 8, rows["clips a second, equal masks"]
    step_s = clips / rate - (rows["part: optimizer"] + rows["part: moving average"]) / 1000
    flops = clips * rows["FLOPs a clip"] * 1e9 / step_s
    assert pytest.approx(flops / H100.peak("bf16"), abs=0.005) == MFU


def test_zero_1_sends_gradients_twice_and_weights_and_target_once(on_512: Estimate) -> None:
    """ZeRO, arXiv:1910.02054, sec. 7: 2 Ψ elements a step; DeepSpeed sums for all: 3 Ψ; the target's E."""
    trained, target = on_512.weights.trained, on_512.weights.target
    sends = on_512.sends[on_512.own]
    assert sends.gradients == pytest.approx(2 * 2 * trained, rel=0.01)
    assert sends.weights == pytest.approx(2 * trained, rel=0.01)
    assert sends.target == pytest.approx(2 * target, rel=0.05)
    assert on_512.speed.network_s == pytest.approx(sends.total / (0.8 * 50e9))


def test_one_rank_sends_nothing_and_neighbours_in_a_node_go_by_their_links() -> None:
    config = small_config(train={"global_batch": 4, "micro_batch": 1})
    one, four = (estimate(config, Stated(H100, 1, gpus)) for gpus in (1, 4))
    assert one.speed.network_s == 0
    assert four.speed.network_s == pytest.approx(four.sends[four.own].total / (0.8 * 450e9))


def test_loader_figures_are_those_of_the_results() -> None:
    rows = json.loads((RESULTS / "loader.json").read_text())["rows"]
    cpu = {row["case"]: row["ours"] for row in rows if row["metric"] == "all"}
    for encoding in ("mp4", "jpeg"):
        assert CPU_MS[encoding] == cpu[f"{encoding}, as for a GPU, CPU by stage"]
        assert CPU_MS_FLOATS[encoding] == cpu[f"{encoding}, ready floats, CPU by stage"]
    rows = json.loads((RESULTS / "shard.json").read_text())["rows"]
    sizes = {row["case"]: row["ours"] for row in rows if row["metric"] == "size"}
    assert sizes["220 clips, bars left as they are"] == pytest.approx(BYTES["mp4"], rel=1e-3)
    assert sizes["jpeg for mp4, 64 clips"] == pytest.approx(BYTES["jpeg"], rel=1e-3)


def test_a_clip_costs_by_its_seconds_and_pixels() -> None:
    config = vitg_config()
    assert clip_cost(config, "mp4", "cuda") == pytest.approx((0.01141, 123_564))
    data = config.data.model_copy(update={"frames": 64, "size": 384})
    larger = clip_cost(config.model_copy(update={"data": data}), "mp4", "cuda")
    assert larger == pytest.approx((4 * 2.25 * 0.01141, 4 * 2.25 * 123_564))


def vitg_config() -> RunConfig:
    return read_config("configs/train/vjepa2-vitg16.yaml", [], RunConfig)


def test_the_loader_or_the_storage_binds_where_it_is_slowest() -> None:
    slow = vitg(64, "h100", storage=1e8)
    assert slow.speed.binds == "storage"
    assert slow.speed.step_s == pytest.approx(3072 * 123_564 / 1e8)
    small = vitg(64, "h100", "model.encoder.preset=vit_tiny", "data.workers=1")
    assert small.speed.binds == "loader"
    assert small.speed.step_s == pytest.approx(6 * 0.01141)
    assert vitg(128, "h100", "train.micro_batch=3").speed.binds == "network"  # three clips a billion weights


def test_zero_3_sends_while_it_computes() -> None:
    found = vitg(64, "h100", "strategy.zero_stage=3")
    speed = found.speed
    assert speed.work_s == pytest.approx(max(speed.compute_s, speed.network_s))
    off = vitg(64, "h100", "strategy.zero_stage=3", "strategy.overlap_comm=false").speed
    assert off.work_s == off.compute_s + off.network_s


def in_turns(filling_s: list[float], reducing_s: float) -> float:
    """When the last of some buffers is reduced: one at a time, and no buffer more than the next is filled."""
    ready = free = 0.0
    for filled_s in filling_s:
        ready = max(ready + filled_s, free)  # the backward waits for what is being reduced
        free = ready + reducing_s
    return free


@pytest.mark.parametrize("clips", [3, 6, 24])
def test_zero_1_hides_all_but_the_last_buffer_s_worth(clips: int) -> None:
    """Against a walk through the buffers, sending slower than the backward and faster."""
    changed = (f"train.micro_batch={clips}", f"train.global_batch={512 * clips}")
    config = read_config(
        "configs/train/vjepa2-vitg16.yaml", [*changed, "strategy.overlap_comm=true"], RunConfig
    )
    on = estimate(config, Stated(H100, 64, 8))
    sends, speed = on.sends[on.own], on.speed
    gradients_s = sends.gradients / on.stated.bandwidth
    backward_s = backward_share(on.parts) * speed.compute_s
    assert sends.buffers == 16 and (gradients_s < backward_s) is (clips > 6)
    rest_s = speed.compute_s - backward_s + speed.network_s - gradients_s
    walked_s = in_turns([backward_s / 16] * 16, gradients_s / 16)
    assert speed.work_s == pytest.approx(rest_s + walked_s)


def test_of_several_forwards_zero_1_has_the_last_backward_and_zero_2_has_all() -> None:
    """A quarter of the forwards: of a long backward as much is hidden; of two short ones less."""
    one, two = (
        vitg(64, "h100", "train.micro_batch=1", "strategy.overlap_comm=true", f"strategy.zero_stage={stage}")
        for stage in (1, 2)
    )
    assert one.forwards == two.forwards == 6
    backward_s = backward_share(one.parts) * one.speed.compute_s
    assert one.speed.hidden_s == pytest.approx(15 / 16 * backward_s / 6)
    assert two.speed.hidden_s == pytest.approx(15 / 16 * backward_s)  # and it sends six times as much
    assert two.speed.network_s > 3 * one.speed.network_s


def test_gradients_in_float32_are_twice_the_bytes(on_512: Estimate) -> None:
    twice = vitg(64, "h100", "strategy.reduce_in_fp32=true")
    for a, b in zip(on_512.sends, twice.sends, strict=True):
        assert b.gradients == 2 * a.gradients and (b.weights, b.target) == (a.weights, a.target)


def test_daly_s_interval_loses_least() -> None:
    """The optimum of the cost by brute force, and Young's sqrt(2 δ M) where δ is small beside M."""
    held_up_s, between_s = 20.0, 40_000.0
    found = best_interval_s(held_up_s, between_s)
    assert found == pytest.approx(math.sqrt(2 * held_up_s * between_s), rel=0.03)
    costs = {every: lost_share(every, held_up_s, 0.0, between_s) for every in range(100, 5000, 5)}
    assert min(costs, key=lambda every: costs[every]) == pytest.approx(found, rel=0.03)
    assert best_interval_s(60.0, 100.0) == 100.0
    assert math.isinf(best_interval_s(1.0, math.inf))


def test_failures_grow_with_nodes_and_saving_follows(on_512: Estimate) -> None:
    saves = on_512.saving
    assert saves.between_failures_s == pytest.approx(86_400 / (64 * FAILURES))
    assert saves.size == 12 * on_512.weights.trained + 4 * on_512.weights.target
    assert saves.written_s == pytest.approx(saves.size / 10e9)
    assert saves.lost <= saves.lost_own < 0.01
    often = vitg(failures=1.0).saving
    assert often.every_s < saves.every_s and often.lost > 10 * saves.lost
    never = vitg(failures=0.0)
    assert math.isinf(never.saving.between_failures_s)
    assert json.loads(json.dumps(never.plain()))["saving"]["between_failures_s"] is None


def test_what_if_agrees_with_an_estimate_of_the_same_size(on_512: Estimate) -> None:
    (there,) = (each for each in on_512.what_if if each.gpus == 512)
    assert there.step_s == pytest.approx(on_512.speed.step_s)
    assert there.micro_batch == 6 and there.binds == on_512.speed.binds
    assert [each.gpus for each in on_512.what_if] == [2**power for power in range(11)]
    days = [each.days for each in on_512.what_if if each.days is not None]
    assert days == sorted(days, reverse=True)
    hours = [each.gpu_hours for each in on_512.what_if if each.gpu_hours is not None]
    assert hours == sorted(hours)  # what ranks say to each other is never free


def test_what_if_says_what_does_not_divide_and_what_does_not_fit() -> None:
    found = vitg(1, "h100", "train.global_batch=48")
    assert [each.gpus for each in found.what_if if each.problem] == [32, 64, 128, 256, 512, 1024]
    tight = estimate(vitg_config(), Stated(gpu_of("rtx4090", None, 8.0, None), 16, 8))
    assert {each.binds for each in tight.what_if} >= {"memory"}


def test_a_smaller_memory_takes_fewer_clips_and_recomputing_more() -> None:
    large, small = vitg(1, "h200", "train.micro_batch=24"), vitg(1, "a100-40", "train.micro_batch=24")
    for a, b in zip(large.columns, small.columns, strict=True):
        assert b.room < a.room and b.room_recomputing < a.room_recomputing
        assert a.room < a.room_recomputing and b.micro_batch <= b.room
    assert not any(column.room for column in estimate(
        vitg_config(), Stated(gpu_of("h100", None, 4.0, None), 16, 8)
    ).columns[:2])  # fmt: skip


def test_what_fits_fits_and_one_more_clip_does_not() -> None:
    config = vitg_config()
    stated = Stated(gpu_of("h100", None, None, None), 16, 8)
    own = next(column for column in estimate(config, stated).columns if column.is_own)
    for clips, fits in ((own.room_recomputing, True), (own.room_recomputing + 1, False)):
        train = config.train.model_copy(update={"micro_batch": clips, "global_batch": 128 * clips})
        there = estimate(config.model_copy(update={"train": train}), stated)
        assert (there.columns[there.own].most <= stated.usable) is fits


def test_a_stated_figure_takes_the_gpu_s_place() -> None:
    found = gpu_of("h100", 500.0, 40.0, 100.0)
    assert found == replace(GPUS["h100"], bf16=500.0, fp32=500.0, memory=40e9, network=12.5e9)
    cpu = gpu_of("cpu", 1.0, 64.0, None)
    assert cpu.device == "cpu" and cpu.peak("bf16") == 1e12
    assert Stated(cpu).usable == 64e9


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (operations(5.09e12), "5.09 TFLOP"),
        (bytes_of(123_564), "124 kB"),
        (bytes_of(999_999), "1 MB"),
        (duration(0.2), "200 ms"),
        (duration(90), "90 s"),
        (duration(4_500), "75 min"),
        (duration(100_000), "27.8 h"),
        (duration(356_000), "4.12 days"),
        (duration(math.inf), "never"),
        (percent(0.4), "40 %"),
        (percent(0.0016), "0.16 %"),
    ],
)
def test_numbers_are_short(found: str, words: str) -> None:
    assert found == words
