"""Figures of speed and system: against the kernel's own, and over ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch.train import run_train
from pretrain.config import plan
from pretrain.flops import flops_a_clip, flops_of
from pretrain.speed import Speed
from pretrain.strategy.base import World
from pretrain.system import System, Use, disk_free, over_ranks
from pretrain.tracking.jsonl import read_metrics
from tests.pretrain.small_objective import small_batch, small_config
from tests.small_dataset import tiny_config

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class TwoRanks(World):
    """The other rank has done twice as much."""

    def gather(self, flat: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.stack([flat, 2 * flat])


def burn(seconds: float) -> float:
    """Spend CPU time; how much it was."""
    begin_s = time.process_time()
    while time.process_time() - begin_s < seconds:
        sum(range(1000))
    return time.process_time() - begin_s


def test_cores_and_memory_are_those_that_the_kernel_counts() -> None:
    clock = Clock()
    system = System(CPU, list, clock)
    spent_s = burn(0.3)
    clock.now_s = 2.0
    use = system.read()
    assert use.cores == pytest.approx(spent_s / 2, abs=0.03)  # it counts in hundredths of a second
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert use.host_memory == pytest.approx(1024 * int(status["VmRSS"].split()[0]), rel=0.05)
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert use.host_available == pytest.approx(1024 * int(memory["MemAvailable"].split()[0]), rel=0.2)
    assert 0 <= use.machine_share <= 1
    assert (use.gpu_memory, use.gpu_reserved, use.gpu_share) == (0, 0, 0)
    clock.now_s = 3.0
    assert system.read().cores < 0.1


def test_loader_workers_count_while_they_live() -> None:
    code = "held = bytearray(60_000_000); print(1, flush=True); input()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    clock = Clock()
    system = System(CPU, lambda: [worker.pid], clock)
    clock.now_s = 1.0
    use = system.read()
    assert 60e6 < use.loader_memory < 90e6
    assert use.cores > 0
    worker.communicate("\n", timeout=30)
    clock.now_s = 2.0
    gone = system.read()
    assert gone.loader_memory == 0


def test_memory_of_a_gpu_is_the_most_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what CUDA answers in place of a GPU."""
    resets: list[torch.device] = []
    answers = {
        "max_memory_allocated": lambda _: 50,
        "max_memory_reserved": lambda _: 60,
        "reset_peak_memory_stats": resets.append,
        "mem_get_info": lambda _: (20, 80),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    use = System(torch.device("cuda", 0), list).read()
    assert (use.gpu_memory, use.gpu_reserved, use.gpu_share) == (50, 60, 0.75)
    assert len(resets) == 1, "the next line counts from here"


def test_ranks_are_told_by_the_one_that_is_worst_off() -> None:
    first = Use(1, 2, 0.5, 10, 20, 300, 1.0, 0.4)
    second = Use(5, 6, 0.25, 30, 0, 200, 2.0, 0.6)
    found = over_ranks([astuple(first), astuple(second)], has_gpu=True)
    assert found == {
        "system/host_memory_bytes": 30,
        "system/loader_memory_bytes": 20,
        "system/host_available_bytes": 200,
        "system/cpu_cores": 1.5,
        "system/cpu_share": 0.5,
        "system/gpu_memory_bytes": 5,
        "system/gpu_reserved_bytes": 6,
        "system/gpu_memory_share": 0.5,
    }
    assert not any("gpu" in key for key in over_ranks([astuple(first)], has_gpu=False))


def test_room_on_the_disk_is_that_of_the_run_s_folder(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    assert disk_free(tmp_path)["system/disk_free_bytes"] == pytest.approx(
        facts.f_bavail * facts.f_frsize, rel=0.05
    )
    assert disk_free(tmp_path / "none") == {}


def test_flops_of_the_batches_that_passed_count_once(tmp_path: Path) -> None:
    config = small_config(train={"global_batch": 6, "micro_batch": 3, "precision": "fp32"})
    speed = Speed(plan(config, 1), World(0, 1, CPU), tmp_path)
    batches = [small_batch(config, 3), small_batch(config, 3, first=3)]
    for batch in batches:
        speed.note(batch)
    expected = sum(flops_of(config, batch.masks).model for batch in batches)
    values = speed.take(0.5)
    assert values["perf/tflops"] == pytest.approx(expected / 0.5 / 1e12)
    assert "perf/mfu" not in values and "perf/hardware_tflops" not in values
    assert speed.take(0.5)["perf/tflops"] == 0


def test_tflops_are_a_rank_s_mean_and_hardware_counts_what_is_recomputed(tmp_path: Path) -> None:
    train = {"global_batch": 6, "micro_batch": 3, "precision": "fp32"}
    config = small_config(
        train=train, strategy={"kind": "deepspeed", "zero_stage": 1, "activation_checkpointing": True}
    )
    speed = Speed(plan(config, 2), TwoRanks(1, 2, CPU), tmp_path)
    batch = small_batch(config, 3)
    speed.note(batch)
    own = flops_of(config, batch.masks)
    values = speed.take(1.0)
    assert values["perf/tflops"] == pytest.approx(1.5 * own.model / 1e12)
    assert values["perf/hardware_tflops"] == pytest.approx(1.5 * own.hardware / 1e12)
    assert "system/disk_free_bytes" not in values  # the first rank says it


def test_mfu_is_a_share_of_the_device_s_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.speed.peak_tflops", lambda *_: 2e-6)
    config = small_config(train={"global_batch": 3, "micro_batch": 3})
    speed = Speed(plan(config, 1), World(0, 1, CPU), tmp_path)
    speed.note(small_batch(config, 3))
    values = speed.take(1.0)
    assert values["perf/mfu"] == pytest.approx(values["perf/tflops"] / 2e-6)


def test_each_logged_line_says_how_fast_and_with_what(small_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(small_dataset, tmp_path, train={"steps": 6, "log_every": 3})
    lines = read_metrics(run_train(config, quiet=True).run)
    assert [line["step"] for line in lines] == [1, 3, 5, 6]  # at 5 there is a look
    a_clip = flops_a_clip(config).model
    for line in lines:
        flops = line["perf/tflops"] * 1e12 / line["perf/clips_per_s"]
        assert flops == pytest.approx(a_clip, rel=0.35)  # masks differ from step to step
        assert line["system/host_memory_bytes"] > 50e6
        assert {"system/cpu_share", "system/cpu_cores", "system/disk_free_bytes"} <= line.keys()
        assert "system/gpu_memory_bytes" not in line
