"""What a save holds training up for, and how fast it writes: `python -m benchmarks.checkpoint`.

One rank, ViT-S on 16 frames of 112² (on a GPU ViT-L of 256²) under DeepSpeed ZeRO-1: weights, the optimizer's
averages and the target's in float32. In the background: what the loop waits for, and what steps take longer
while the file is written. Beside it: the same bytes written, brought to disk and hashed with nothing around
it; `torch.save` of the same state; DeepSpeed's own `save_checkpoint`, neither of which brings anything to
disk or hashes it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CASES, Clock, alone, batches_of, one_step
from benchmarks.measuring import Quiet, Row, publish, row, short, so_far, tell
from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.checkpoint import Checkpoints
from pretrain.config import RunConfig, plan
from pretrain.progress import Progress
from pretrain.strategy.base import Engine

CPU_CASE, CUDA_CASE = "ViT-S, 16 frames of 112²", "ViT-L, 16 frames of 256²"
PIECE = 16 << 20
LONGEST_S = 60.0  # of a save in the background
STEPS = 2  # whose median is a step's time
QUICK = ("stall", "waiting", "bare")  # of what is timed in a turn


def config_of(case: str, device: torch.device, *, in_background: bool) -> RunConfig:
    shape = CASES[device.type][case]
    preset, frames, size, clips = shape.preset, shape.frames, shape.size, shape.clips
    precision = "bf16" if device.type == "cuda" else "fp32"
    train = {"global_batch": clips, "micro_batch": clips, "precision": precision, "keep_checkpoints": 1}
    return RunConfig.model_validate(
        {
            "name": "checkpoint",
            "data": {"shards": "nowhere", "frames": frames, "size": size},
            "model": {"encoder": {"preset": preset}, "predictor": {"depth": 12, "width": 384, "heads": 12}},
            "train": train | {"save_in_background": in_background},
            "strategy": {"kind": "deepspeed", "zero_stage": 1},
        }
    )


class Saving:
    """One engine, its steps, and ways to save it."""

    def __init__(self, case: str, device: torch.device, folder: Path) -> None:
        self.folder, self.clock = folder, Clock(device)
        self.config = config_of(case, device, in_background=True)
        world = alone(device)
        self.engine: Engine = build_engine(plan(self.config, 1), world)
        self.batches = batches_of(self.config, device)
        self.now = 0
        beside, waiting = (config_of(case, device, in_background=yes) for yes in (True, False))
        self.beside, self.waiting = (
            Checkpoints(folder / name, plan(config, 1), world, "data", {}, tell, lambda: None)
            for name, config in (("beside", beside), ("waiting", waiting))
        )

    def step(self) -> float:
        began = self.clock()
        one_step(self.engine, self.config, self.batches[self.now % len(self.batches)])
        self.now += 1
        return self.clock() - began

    def progress(self) -> Progress:
        return Progress(step=self.now, samples=self.now * self.config.train.global_batch)

    def median_step(self) -> float:
        return statistics.median(self.step() for _ in range(STEPS))

    def in_background(self) -> tuple[float, float, int]:
        """Seconds in which the loop waited for a save; of all until it was whole; steps meanwhile."""
        began, progress = self.clock(), self.progress()
        self.beside.take_metrics()
        self.beside.save(self.engine, progress, is_last=False)
        final, steps = self.folder / "beside" / "checkpoints" / f"step-{progress.step:08d}", 0
        while not final.exists() and self.clock() - began < LONGEST_S:
            self.step()
            self.beside.follow()
            steps += 1
        assert final.exists(), f"{final} was not published"
        stall_s = self.beside.take_metrics()["perf/save_stall_ms"] / 1000
        return stall_s, self.clock() - began, steps

    def waited_for(self) -> float:
        began = self.clock()
        self.waiting.save(self.engine, self.progress(), is_last=False)
        return self.clock() - began

    def bare(self) -> float:
        """Seconds to write the same bytes from host memory, bring them to disk, and hash them."""
        tensors = [tensor.detach().cpu().reshape(-1).float() for tensor in self.engine.tensors().values()]
        data = memoryview(torch.cat(tensors).numpy().data).cast("B")
        digest, path = hashlib.sha256(), self.folder / "bare"
        began = time.perf_counter()
        with path.open("wb") as file:
            for at in range(0, len(data), PIECE):
                file.write(data[at : at + PIECE])
                digest.update(data[at : at + PIECE])
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        path.unlink()
        return seconds

    def torch_save(self) -> float:
        path = self.folder / "torch.pt"
        began = self.clock()
        torch.save(self.engine.tensors(), path)
        seconds = self.clock() - began
        path.unlink()
        return seconds

    def deepspeed_save(self) -> float:
        """It has no target: weights and optimizer only."""
        folder = self.folder / "deepspeed"
        began = self.clock()
        self.engine._backend._engine.save_checkpoint(str(folder))  # type: ignore[attr-defined]
        seconds = self.clock() - began
        shutil.rmtree(folder)
        return seconds

    def resume(self) -> float:
        began = self.clock()
        found = self.waiting.resume(self.engine)
        assert found.step > 0
        return self.clock() - began


def measure(case: str, device: torch.device, turns: int, quiet: Quiet, *, is_quick: bool) -> list[Row]:
    base = Path("runs")  # on the disk that runs are on; /tmp may be memory
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=base) as name:
        saving = Saving(case, device, Path(name))
        num_bytes = 4 * sum(tensor.numel() for tensor in saving.engine.tensors().values())
        works: dict[str, Callable[[], float]] = {
            "waiting": saving.waited_for,
            "bare": saving.bare,
            "torch": saving.torch_save,
            "deepspeed": saving.deepspeed_save,
            "resume": saving.resume,
        }
        if is_quick:
            works = {name: work for name, work in works.items() if name in QUICK}
        found: dict[str, list[float]] = {key: [] for key in ("step", "stall", "longer", *works)}
        saving.median_step()
        saving.in_background()  # the first warms up, as does the first of the others in a whole run
        for work in () if is_quick else works.values():
            work()
        for _ in range(turns):
            quiet.wait()
            step_s = saving.median_step()
            stall_s, all_s, steps = saving.in_background()
            found["step"].append(step_s)
            found["stall"].append(stall_s)
            found["longer"].append(all_s - steps * step_s)
            so_far(rows_of(case, found, num_bytes))
            for key, work in works.items():
                found[key].append(work())
            so_far(rows_of(case, found, num_bytes))
    return rows_of(case, found, num_bytes)


def rows_of(case: str, found: dict[str, list[float]], num_bytes: int) -> list[Row]:
    """found: seconds by what took them, turn by turn; without a key, or with less turns of it, less rows."""

    def in_steps(name: str, key: str) -> list[Row]:
        steps = [a / b for a, b in zip(found.get(key, ()), found["step"], strict=False)]
        return [row(case, name, "steps", steps)] if steps else []

    def rates(name: str, key: str, unit: str, worth: float, other: str = "", words: str = "") -> list[Row]:
        pairs = list(zip(found.get(key, ()), found.get(other or key, ()), strict=False))
        mine, others = (
            ([worth / each for each in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
        )
        return [row(case, name, unit, mine, others if other else (), words)] if mine else []

    facts = {"step_ms": short(1000 * statistics.median(found["step"])), "bytes": num_bytes}
    megabytes, waited = num_bytes / 1e6, "saved, waited for"
    return [
        *(each | facts for each in in_steps("held up by a save in the background", "stall")),
        *in_steps("held up and slowed down by it", "longer"),
        *in_steps("held up by a save that is waited for", "waiting"),
        *rates(waited, "waiting", "MB/s", megabytes, "bare", "write, fsync, sha256"),
        *rates(waited, "waiting", "MB/s", megabytes, "torch", "torch.save, no fsync"),
        *rates("saves a second", "waiting", "1/s", 1.0, "deepspeed", "DeepSpeed's"),
        *rates("resumed from a whole checkpoint", "resume", "MB/s", megabytes),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--case", help="as in train_step")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one turn, no waiting, without torch.save, DeepSpeed's and resuming; printed, not written",
    )
    parser.add_argument("--wait-s", type=float, default=120.0, help="how long to wait for a quiet machine")
    given = parser.parse_args()
    device = torch.device(given.device)
    case = given.case or (CUDA_CASE if device.type == "cuda" else CPU_CASE)
    turns, quiet = (1, Quiet(0.0)) if given.quick else (given.turns, Quiet(given.wait_s))
    rows = measure(case, device, turns, quiet, is_quick=given.quick)
    facts: dict[str, Any] = {"turns": turns, "busy_with_other_work": quiet.loads}
    publish(
        "checkpoint" if device.type == "cpu" else "checkpoint_cuda", facts, rows, is_whole=not given.quick
    )


if __name__ == "__main__":
    main()
    end_rank()
