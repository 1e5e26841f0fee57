"""Bytes of this process's tensors, counted one by one: what a rank holds, whatever the allocator does."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.data.stream import Batches
from pretrain.memory import held
from pretrain.schedule import knobs_at
from pretrain.strategy.base import World


def storages() -> dict[int, torch.UntypedStorage]:
    """Each storage that a tensor of this process lies in, by address; while they are kept, none is reused."""
    gc.collect()
    found: dict[int, torch.UntypedStorage] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.layout == torch.strided and tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage
    found.pop(0, None)
    return found


def measure(config: RunConfig, world: World) -> dict[str, Any]:
    """Two steps; what is held after them, and in the midst of the last backward.

    formula: what pretrain/memory.py says of the same.
    """
    laid_out = plan(config, world.size)
    batches = Batches(laid_out, world.rank, world.device)
    before = storages()
    gc.freeze()  # what there is already is not looked at again, which would take most of the time
    engine = build_engine(laid_out, world)
    sizes = [
        sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters()) if module else 0
        for module in (engine.objective, engine.target)
    ]

    def now() -> int:
        return sum(storage.nbytes() for address, storage in storages().items() if address not in before)

    seen: list[int] = []
    for step in range(2):
        knobs = knobs_at(step, config)
        for number, batch in enumerate(batches.take(laid_out.micro_batches)):
            output = engine.loss(batch, engine.targets(batch))
            is_last = step == 1 and number == laid_out.micro_batches - 1
            handle = watch_backward(engine.objective, now, seen) if is_last else None
            engine.backward(output)
            if handle is not None:
                handle.remove()
            del output, batch
        after_backward = now()
        engine.step(knobs)
        engine.update_target(0.99)
    if engine.ema is not None:
        engine.ema.ready()
    always = min(now() for _ in range(5) if time.sleep(0.05) is None)  # gloo lets go a moment later
    batches.close()
    told = held(laid_out, *sizes)
    return {
        "always": always,
        "most": max(*seen, after_backward),
        "formula": {"always": told.always, "most": told.most - told.copy},  # no tensor of Python's holds it
    }


def watch_backward(module: torch.nn.Module, now: Callable[[], int], seen: list[int]) -> Any:
    """Count when the gradient of the encoder's last block comes, which is early in a backward."""
    weight = module.get_parameter("encoder.norm.weight")
    return weight.register_hook(lambda gradient: seen.append(now()))
