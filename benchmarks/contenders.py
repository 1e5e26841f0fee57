"""What benchmarks/train_step.py times, each in a process of its own: ours, ours with a setting off, peers.

A contender is made by `make`, once, in its process; the parent then asks for turns through a pipe, one
contender at a time, while the others wait without using a core. So no library's settings reach another's.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch

from launch.ranks import end_rank
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.kernels import TARGET, kernels_for
from pretrain.masks import Masks, sample_masks
from pretrain.model.linear import linear, probe_onednn, use
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch
from pretrain.schedule import knobs_at
from pretrain.strategy.base import Engine, World

PREDICTOR = {"depth": 12, "width": 384, "heads": 12}
PARTS = ("target forward", "context and predictor forward", "backward", "optimizer", "moving average")
NUM_BATCHES = 4
MOMENTUM = 0.999


@dataclass(frozen=True)
class Shape:
    """A case: preset, frames, pixels a side, clips a step, predictor, device, precision."""

    preset: str
    frames: int
    size: int
    clips: int
    device: str = "cpu"
    precision: str = "fp32"
    predictor: dict[str, int] = field(default_factory=lambda: dict(PREDICTOR))


NARROW = PREDICTOR | {"width": 96, "heads": 3}
CASES = {
    "cpu": {
        "ViT-tiny, 8 frames of 64²": Shape("vit_tiny", 8, 64, 4),
        "ViT-tiny, 8 frames of 64², predictor of 96": Shape("vit_tiny", 8, 64, 4, predictor=NARROW),
        "ViT-S, 16 frames of 112²": Shape("vit_small", 16, 112, 2),
    },
    "cuda": {
        # Meta's code keeps about 2.7 GB a clip for the backward, by count of what autocast saves: 24 clips
        # would hardly fit into 80 GB.
        "ViT-L, 16 frames of 256²": Shape("vit_large", 16, 256, 16, "cuda", "bf16"),
        "ViT-g, 16 frames of 256²": Shape("vit_giant", 16, 256, 8, "cuda", "bf16"),
    },
}
# Measured where it is named: what a GPU runs, DeepSpeed in bf16, tried on a CPU.
SHALLOW = PREDICTOR | {"depth": 2, "width": 96, "heads": 3}
TRIED = {
    "cpu": {"ViT-tiny, 4 frames of 64², as on a GPU": Shape("vit_tiny", 4, 64, 2, "cpu", "bf16", SHALLOW)}
}


def config_of(shape: Shape, changes: dict[str, Any] | None = None) -> RunConfig:
    """A run of that shape, with masks cut to equal lengths unless changed. changes: by dotted key."""
    values: dict[str, Any] = {
        "name": "step",
        "data": {"shards": "nowhere", "frames": shape.frames, "size": shape.size},
        "model": {"encoder": {"preset": shape.preset, "rope": "vjepa2"}, "predictor": shape.predictor},
        "objective": {
            "kind": "masked_latent",
            "masks": [{"blocks": 8, "spatial_scale": 0.15}, {"blocks": 2, "spatial_scale": 0.7}],
            "truncate": "raster",
        },
        "optim": {},
        "train": {
            "steps": 1000,
            "global_batch": shape.clips,
            "micro_batch": shape.clips,
            "precision": shape.precision,
        },
        "strategy": {"kind": "single"}
        if shape.precision == "fp32"
        else {"kind": "deepspeed", "zero_stage": 1},
    }
    for key, value in (changes or {}).items():
        section, name = key.split(".")
        values[section] = values[section] | {name: value}
    return RunConfig.model_validate(values)


def masks_of(config: RunConfig, count: int = NUM_BATCHES) -> list[Masks]:
    """Of micro-batches one after the other, on the CPU."""
    clips, objective = config.train.micro_batch, config.objective
    assert objective.kind == "masked_latent"
    return [
        sample_masks(
            objective.masks,
            config.grid,
            config.seed,
            step,
            tuple(range(clips * step, clips * (step + 1))),
            truncate=objective.truncate,
        )
        for step in range(count)
    ]


def batches_of(config: RunConfig, device: torch.device, count: int = NUM_BATCHES) -> list[Batch]:
    """Of noise, made on the device."""
    data, clips = config.data, config.train.micro_batch
    found = []
    for step, masks in enumerate(masks_of(config, count)):
        generator = torch.Generator(device).manual_seed(step)
        shape = (clips, 3, data.frames, data.size, data.size)
        pixels = torch.randn(shape, generator=generator, device=device)
        positions = tuple(range(clips * step, clips * (step + 1)))
        found.append(Batch(step, positions, tuple(map(str, positions)), pixels, masks.to(device)))
    return found


def alone(device: torch.device) -> World:
    """A world of one rank, as DeepSpeed wants it."""
    from pretrain.strategy.deepspeed import join_world

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(found, MASTER_PORT=port)
    return join_world(device, 120.0)


class Clock:
    """Wall time, once the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def __call__(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def one_step(engine: Engine, config: RunConfig, batch: Batch, clock: Clock | None = None) -> list[float]:
    """Take it. With a clock: seconds of each of PARTS."""
    knobs = knobs_at(batch.step, config)
    times: list[float] = []

    def lap() -> None:
        if clock is not None:
            times.append(clock())

    lap()
    targets = engine.targets(batch)
    lap()
    output = engine.loss(batch, targets)
    lap()
    engine.backward(output)
    del targets
    lap()
    update = engine.step(knobs)
    lap()
    engine.update_target(knobs.momentum)
    lap()
    assert update.applied
    return [after - before for before, after in pairwise(times)]


@dataclass
class Contender:
    """take: one step (or one pass) on a batch by its number. parts: its seconds, by PARTS, of ours only."""

    take: Callable[[int], object]
    parts: Callable[[int], list[float]] | None = None
    parameters: int = 0


def ours(shape: Shape, changes: dict[str, Any]) -> Contender:
    device = torch.device(shape.device)
    config = config_of(shape, changes)
    world = World(0, 1, device) if shape.precision == "fp32" else alone(device)
    engine = build_engine(plan(config, 1), world)
    batches, clock = batches_of(config, device), Clock(device)
    return Contender(
        lambda n: one_step(engine, config, batches[n]),
        lambda n: one_step(engine, config, batches[n], clock),
        sum(p.numel() for p in engine.objective.parameters()),
    )


def theirs(shape: Shape, checkout: str) -> Contender:
    """Meta's code, from a checkout."""
    from pathlib import Path

    from benchmarks.peer_vjepa2 import PeerStep

    device = torch.device(shape.device)
    config = config_of(shape)
    dtype = torch.bfloat16 if shape.precision == "bf16" else torch.float32
    peer = PeerStep(Path(checkout), config, device, dtype)
    batches = batches_of(config, device)
    lists = [peer.lists(batch.masks) for batch in batches]
    return Contender(
        lambda n: peer.step(batches[n].clips, *lists[n], MOMENTUM), parameters=peer.num_parameters
    )


def our_encoder(shape: Shape) -> Contender:
    """Forward and backward of the encoder alone, on whole clips."""
    device, config = torch.device(shape.device), config_of(shape)
    dtype = torch.bfloat16 if shape.precision == "bf16" else torch.float32
    use(config.model.products)
    kernels = kernels_for(config, World(0, 1, device))
    encoder = Encoder(config.model.encoder, config.grid, kernels.attention[TARGET])
    encoder.compile_blocks(kernels.compiler)
    encoder.initialise(torch.Generator().manual_seed(0))
    encoder.to(device, dtype)
    clips = [batch.clips.to(dtype) for batch in batches_of(config, device)]
    return Contender(
        lambda n: encoder(clips[n]).float().square().mean().backward(),
        parameters=sum(p.numel() for p in encoder.parameters()),
    )


def transformers_encoder(shape: Shape) -> Contender:
    """The same of Hugging Face's VJEPA2Model, with its predictor left out."""
    from transformers import VJEPA2Config, VJEPA2Model

    device, config = torch.device(shape.device), config_of(shape)
    dtype = torch.bfloat16 if shape.precision == "bf16" else torch.float32
    encoder = config.model.encoder
    width, depth, heads, ratio = encoder.shape
    model = VJEPA2Model(
        VJEPA2Config(
            patch_size=encoder.patch,
            crop_size=shape.size,
            frames_per_clip=shape.frames,
            tubelet_size=encoder.tubelet,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=depth,
            mlp_ratio=ratio,
            attn_implementation="sdpa",
        )
    ).encoder.to(device, dtype)
    clips = [batch.clips.transpose(1, 2).to(dtype).contiguous() for batch in batches_of(config, device)]
    return Contender(
        lambda n: model(clips[n]).last_hidden_state.float().square().mean().backward(),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def matrix_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of the best of a few large products, by library: what the machine gives to nothing else."""
    clock, rates = Clock(device), {"torch": 0.0}
    if device.type == "cpu" and dtype == torch.float32 and probe_onednn() is None:
        rates["onednn"] = 0.0
    for library in rates:
        if device.type == "cpu":
            use("onednn" if library == "onednn" else "torch")
        for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            linear(a, b, None)
            for _ in range(5):
                began = clock()
                for _ in range(3):
                    linear(a, b, None)
                rates[library] = max(rates[library], 3 * 2 * size**3 / (clock() - began))
    return rates


def _serve(make: Callable[..., Contender], given: tuple[Any, ...], device: str, pipe: Connection) -> None:
    contender, clock = make(*given), Clock(torch.device(device))
    pipe.send(contender.parameters)
    while (asked := pipe.recv()) is not None:
        what, steps = asked
        if what == "parts":
            assert contender.parts is not None
            pipe.send([contender.parts(n % NUM_BATCHES) for n in range(steps)])
            continue
        contender.take(NUM_BATCHES - 1)  # caches and threads are cold after the others' turns
        began = clock()
        for number in range(steps):
            contender.take(number % NUM_BATCHES)
        pipe.send(clock() - began)
    end_rank()  # the teardown of what a GPU's libraries hold takes seconds


class Running:
    """A contender in its process. parameters: that it trains."""

    def __init__(self, make: Callable[..., Contender], given: tuple[Any, ...], device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, given, device, other), daemon=True)
        self._process.start()
        other.close()
        try:
            self.parameters: int = self._pipe.recv()
        except EOFError:
            self._process.join(30)
            raise SystemExit(
                f"{make.__name__} could not be made: its process ended with {self._process.exitcode}; why, "
                f"stands above"
            ) from None

    def seconds(self, steps: int) -> float:
        self._pipe.send(("steps", steps))
        found: float = self._pipe.recv()
        return found

    def parts(self, steps: int) -> list[list[float]]:
        self._pipe.send(("parts", steps))
        found: list[list[float]] = self._pipe.recv()
        return found

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


@contextmanager
def running(make: Callable[..., Contender], given: tuple[Any, ...], device: str) -> Iterator[Running]:
    contender = Running(make, given, device)
    try:
        yield contender
    finally:
        contender.close()
