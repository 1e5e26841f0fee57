"""Memory of a rank at every ZeRO stage, beside what `foreframe estimate` says: `python -m benchmarks.memory`.

Two real ranks over gloo train two steps of a ViT-B with its target on one small clip a rank. What the engine
takes is the growth of the process (PSS: its own pages, and its share of those that others have too) since
the moment before it was built, between steps and, at its most, during the last backward. On a GPU: its
allocator's own counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Row, publish, row, tell
from launch.outline import num_parameters
from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.masks import sample_masks
from pretrain.memory import held
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World
from pretrain.strategy.deepspeed import join_world

RANKS = 2
Case = tuple[int, str, int, bool]
MODEL = {
    "encoder": {"preset": "vit_base"},
    "predictor": {"depth": 12, "width": 384, "heads": 12},
}
# (ZeRO stage, precision, forwards a step, optimizer on the host)
CASES: list[Case] = [
    (0, "fp32", 1, False),
    (1, "bf16", 1, False),
    (1, "bf16", 4, False),
    (2, "bf16", 1, False),
    (2, "bf16", 4, False),
    (3, "bf16", 1, False),
    (2, "bf16", 1, True),
    (3, "bf16", 1, True),
]


def config_of(stage: int, precision: str, forwards: int, offloads: bool, ranks: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "memory",
            "data": {"shards": "nowhere", "frames": 4, "size": 64},
            "model": {
                "encoder": {"preset": "vit_base"},
                "predictor": {"depth": 12, "width": 384, "heads": 12},
            },
            "train": {"global_batch": ranks * forwards, "micro_batch": 1, "precision": precision},
            "strategy": {"kind": "deepspeed", "zero_stage": stage, "offload_optimizer": offloads},
        }
    )


def name_of(stage: int, precision: str, forwards: int, offloads: bool) -> str:
    host = ", optimizer on the host" if offloads else ""
    return f"ZeRO-{stage}, {precision}, {forwards} forward{'s' if forwards > 1 else ''} a step{host}"


def one_clip(config: RunConfig, number: int, device: torch.device) -> Batch:
    x = torch.randn(1, 3, config.data.frames, config.data.size, config.data.size)
    masks = sample_masks(config.objective.masks, config.grid, 0, 0, [number]).to(device)
    return Batch(0, (number,), (str(number),), x.to(device), masks)


def taken(device: torch.device) -> int:
    """Bytes that this process holds now."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Most:
    """The most that is held while it is open: looked at every 5 ms."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_over, self.bytes = device, threading.Event(), 0

    def __enter__(self) -> Most:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def _look(self) -> None:
        while not self._is_over.wait(0.005):
            text = Path("/proc/self/smaps_rollup").read_text()
            self.bytes = max(self.bytes, 1024 * int(text.partition("Pss:")[2].split()[0]))

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._thread.join()


def train(config: RunConfig, world: World, batch: Batch) -> tuple[Engine, int]:
    """Two steps of a new engine; and the most that was held during the last backward."""
    laid_out, peak = plan(config, world.size), 0
    engine = build_engine(laid_out, world)
    for step in range(2):
        knobs = knobs_at(step, config)
        for _ in range(laid_out.micro_batches):
            output = engine.loss(batch, engine.targets(batch))
            with Most(world.device) as most:
                engine.backward(output)
            peak = most.bytes
            del output
        engine.step(knobs)
        engine.update_target(knobs.momentum)
    if engine.ema is not None:
        engine.ema.ready()
    time.sleep(0.2)
    return engine, peak


def rank(case: Case, out: Path) -> None:
    """One rank of one case."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = join_world(device, 120.0)
    config = config_of(*case, ranks=world.size)
    batch = one_clip(config, world.rank, device)
    # A small model first, so that what libraries load and compile when they are first used is not counted.
    small = config.model_dump(mode="json") | {"model": {"encoder": {"preset": "vit_tiny", "depth": 1}}}
    train(RunConfig.model_validate(small), world, batch)
    begin = taken(device)
    engine, peak = train(config, world, batch)
    found = world.gather_objects({"always": taken(device) - begin, "most": peak - begin})
    del engine
    if world.is_first:
        out.write_text(json.dumps(found))
    end_rank()


def measure(case: Case, out: Path) -> dict[str, int]:
    """What the rank that holds most holds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    words = [*map(str, case[:3]), str(int(case[3]))]
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}

    subprocess.run(
        [*command, "-m", "benchmarks.memory", "--rank", *words, str(out)],
        check=True,
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    ranks: list[dict[str, int]] = json.loads(out.read_text())
    return {key: max(each[key] for each in ranks) for key in ("always", "most")}


def rows_of(case: Case, found: dict[str, int]) -> list[Row]:
    config = config_of(*case, ranks=RANKS)
    sizes = num_parameters(config)
    told = held(plan(config, RANKS), sum(sizes.values()), sizes["encoder"])
    return [
        row(name_of(*case), words, "GB", [found[key] / 1e9], [getattr(told, key) / 1e9], "the formula")
        for key, words in (("always", "between steps"), ("most", "during a backward"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rank", nargs=5, metavar="WORD", help="what the benchmark starts its ranks with")
    parser.add_argument("--only", type=int, help="one ZeRO stage; nothing is written")
    given = parser.parse_args()
    if given.rank:
        stage, precision, forwards, offloads, out = given.rank
        rank((int(stage), precision, int(forwards), offloads == "1"), Path(out))
    rows: list[Row] = []

    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if given.only is None or case[0] == given.only:
                tell(name_of(*case))
                rows += rows_of(case, measure(case, Path(folder) / "found.json"))
    sizes = num_parameters(config_of(1, "bf16", 1, False, RANKS))
    config: dict[str, Any] = {
        "model": "ViT-B, 16 × 16, predictor of 12 blocks",
        "ranks": RANKS,
        "weights": sizes,
    }
    publish("memory", config, rows, is_whole=given.only is None)


if __name__ == "__main__":
    main()
