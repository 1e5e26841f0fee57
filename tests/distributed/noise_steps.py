"""A few steps on clips of noise: every loss, and a digest of all weights, moments and averages afterwards."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World
from tests.distributed.live_step import noise


class Calls(TorchDispatchMode):
    """How often each kind of collective is called, by type; in_backward: while autograd runs."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.in_backward: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = args[0] if isinstance(args[0], list) else [args[0]]
            dtype = next((each.dtype for each in tensors if isinstance(each, torch.Tensor)), None)
            name = func._schema.name.partition("::")[2].strip("_")
            called = f"{name} {str(dtype).removeprefix('torch.')}"
            self.all[called] += 1
            if torch._C._current_graph_task_id() != -1:
                self.in_backward[called] += 1
        return func(*args, **(kwargs or {}))


def train_noise(config: RunConfig, world: World) -> dict[str, Any]:
    """losses: of this rank, a micro-batch each. digest: of what all ranks own at the end, to the last bit.

    called, in_backward: collectives of the last backward.
    """
    torch.manual_seed(world.rank)
    laid_out, clips = plan(config, world.size), config.train.micro_batch
    engine = build_engine(laid_out, world)
    losses = []
    for step in range(config.train.steps):
        knobs = knobs_at(step, config)
        for number in range(laid_out.micro_batches):
            first = world.rank * laid_out.rank_batch + number * clips
            batch = noise(config, range(first, first + clips))
            output = engine.loss(batch, engine.targets(batch))
            losses.append(float(output.loss.detach()))
            with Calls() as calls:
                engine.backward(output)
        assert engine.step(knobs).applied
        engine.update_target(knobs.momentum)
    digest = hashlib.sha256()
    for name, tensor in sorted(engine.tensors().items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    told = world.gather_objects({"losses": losses, "digest": digest.hexdigest()})
    return {"ranks": told, "called": dict(calls.all), "in_backward": dict(calls.in_backward)}
