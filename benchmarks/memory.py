"""Memory of a rank at every ZeRO stage, beside what `foreframe estimate` says: `python -m benchmarks.memory`.

Two real ranks over gloo train two steps of a ViT-B with its target on one small clip a rank, and of a ViT-S
on four clips of 16 frames, whose activations are most of it. What the engine takes is the growth of the
process (PSS: its own pages, and its share of those that others have too) since the moment before it was
built, between steps and, at its most, during the last backward. On a GPU: its allocator's own counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measuring import Row, publish, row, so_far, tell, torchrun
from launch.outline import num_parameters
from launch.ranks import end_rank
from pretrain.activations import activations, last_gradients
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.masks import sample_masks
from pretrain.memory import at_once, held
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World
from pretrain.strategy.deepspeed import join_world

RANKS = 2
BACKWARD = ("loss", "predictor", "encoder", "first", "kept")  # moments of `at_once` in a backward


class Case(NamedTuple):
    """One way to train. offloads: the optimizer is on the host. long: on clips of mostly activations."""

    stage: int
    precision: str
    forwards: int = 1
    offloads: bool = False
    long: bool = False
    recomputes: bool = False


CASES = [
    Case(0, "fp32"),
    Case(1, "bf16"),
    Case(1, "bf16", 4),
    Case(2, "bf16"),
    Case(2, "bf16", 4),
    Case(3, "bf16"),
    Case(2, "bf16", offloads=True),
    Case(3, "bf16", offloads=True),
    Case(0, "fp32", long=True),
    Case(0, "fp32", long=True, recomputes=True),
    Case(1, "bf16", long=True),
    Case(2, "bf16", long=True, recomputes=True),
    Case(3, "bf16", long=True),
]


def config_of(case: Case, ranks: int) -> RunConfig:
    clips = 4 if case.long else 1
    return RunConfig.model_validate(
        {
            "name": "memory",
            "data": {"shards": "nowhere"}
            | ({"frames": 16, "size": 128} if case.long else {"frames": 4, "size": 64}),
            "model": {
                "encoder": {"preset": "vit_small" if case.long else "vit_base"},
                "predictor": {"depth": 12, "width": 384, "heads": 12},
            },
            "train": {
                "global_batch": ranks * case.forwards * clips,
                "micro_batch": clips,
                "precision": case.precision,
            },
            "strategy": {
                "kind": "deepspeed",
                "zero_stage": case.stage,
                "offload_optimizer": case.offloads,
                "activation_checkpointing": case.recomputes,
            },
        }
    )


def name_of(case: Case) -> str:
    model = "ViT-S, 4 clips of 16 × 128², " if case.long else ""
    host = ", optimizer on the host" if case.offloads else ""
    again = ", blocks computed again" if case.recomputes else ""
    forwards = f"{case.forwards} forward{'s' if case.forwards > 1 else ''} a step"
    return f"{model}ZeRO-{case.stage}, {case.precision}, {forwards}{host}{again}"


def clips_of(config: RunConfig, number: int, device: torch.device) -> Batch:
    """Of noise, the micro-batch of rank `number`."""
    clips = config.train.micro_batch
    places = tuple(range(number * clips, (number + 1) * clips))
    x = torch.randn(clips, 3, config.data.frames, config.data.size, config.data.size)
    masks = sample_masks(config.objective.masks, config.grid, 0, 0, places).to(device)
    return Batch(0, places, tuple(map(str, places)), x.to(device), masks)


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
    config = config_of(case, world.size)
    batch = clips_of(config, world.rank, device)
    # A small model first, so that what libraries load and compile when they are first used is not counted.
    smaller = {"encoder": {"preset": "vit_tiny", "depth": 1}, "predictor": {"depth": 1}}
    small = config.model_dump(mode="json") | {"model": smaller}
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
    command = torchrun(RANKS)
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}

    subprocess.run(
        [*command, "-m", "benchmarks.memory", "--rank", json.dumps(case), str(out)],
        check=True,
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    ranks: list[dict[str, int]] = json.loads(out.read_text())
    return {key: max(each[key] for each in ranks) for key in ("always", "most")}


def rows_of(case: Case, found: dict[str, int]) -> list[Row]:
    config = config_of(case, RANKS)
    laid_out, sizes = plan(config, RANKS), num_parameters(config)
    trained, device = sum(sizes.values()), torch.device("cpu")
    told = held(laid_out, trained, sizes["encoder"])
    last, alive = last_gradients(config), []
    for number in range(RANKS):
        masks = clips_of(config, number, device).masks
        without_clips = replace(activations(config, masks, "cpu"), clips=0.0)  # they were there before
        moments = at_once(laid_out, told, without_clips, trained, sizes["predictor"], last)
        alive.append(max(moments[moment] for moment in BACKWARD) + told.host)
    formula = {"always": told.always, "most": max(alive)}
    return [
        row(name_of(case), words, "GB", [found[key] / 1e9], [formula[key] / 1e9], "the formula")
        for key, words in (("always", "between steps"), ("most", "during a backward"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rank", nargs=2, metavar="WORD", help="what the benchmark starts its ranks with")
    parser.add_argument("--only", type=int, help="one ZeRO stage; nothing is written")
    given = parser.parse_args()
    if given.rank:
        case, out = given.rank
        rank(Case(*json.loads(case)), Path(out))
    rows: list[Row] = []

    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if given.only is None or case.stage == given.only:
                tell(name_of(case))
                rows += rows_of(case, measure(case, Path(folder) / "found.json"))
                so_far(rows)
    sizes = num_parameters(config_of(Case(1, "bf16"), RANKS))
    config: dict[str, Any] = {
        "model": "ViT-B, 16 × 16, predictor of 12 blocks",
        "ranks": RANKS,
        "weights": sizes,
    }
    publish("memory", config, rows, is_whole=given.only is None)


if __name__ == "__main__":
    main()
