"""How large gradients, weights and steps are, module by module, out of what each rank owns of them.

Shapes: flat tensors, one a fragment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.ema import ShardedEma
from pretrain.strategy.shards import MASTER, MOMENTS, Shards, tensor_name

Squares = dict[str, Tensor]


@torch.no_grad()
def squares(modules: Sequence[str], named: Iterable[tuple[str, Tensor]]) -> Squares:
    """Sum of squares of each module's tensors, float64 on CPU. named: (parameter, what is owned of it)."""
    parts: dict[str, list[Tensor]] = {module: [] for module in modules}
    for name, tensor in named:
        parts[name.partition(".")[0]].append(tensor.float().square().sum())
    return {
        module: torch.stack(found).double().sum().cpu() if found else torch.zeros((), dtype=torch.float64)
        for module, found in parts.items()
    }


def owned_weights(shards: Shards) -> list[tuple[str, Tensor]]:
    return [(f.name, master) for f, master in zip(shards.fragments, shards.masters, strict=True)]


@torch.no_grad()
def steps_taken(shards: Shards, group_of: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, Tensor]]:
    """What AdamW's last step added to each owned fragment, worked out from its averages, one at a time.

    group_of: the optimizer's group of each parameter, as it was in that step. No copy of the weights from
    before the step is needed: with a the averages' quotient, after = (1 - lr wd) before - lr a.
    Source: decoupled weight decay, arXiv:1711.05101, algorithm 2.
    """
    held, step = shards.tensors(), shards.optimizer_step()
    for fragment in shards.fragments:
        first, second = (held.get(tensor_name(kind, fragment)) for kind in MOMENTS)
        if first is None or second is None or not step:
            continue
        group = group_of[fragment.name]
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        root = (second.float() / (1 - beta2**step)).sqrt().add_(group["eps"])
        moved = (first.float() / (1 - beta1**step)).div_(root).mul_(lr)
        after = held[tensor_name(MASTER, fragment)].to(moved.device)
        yield fragment.name, moved.add_(after, alpha=lr * decay).div_(lr * decay - 1)


@torch.no_grad()
def ema_squares(ema: ShardedEma) -> Tensor:
    """Of this rank's fragments: the squared distance of average and weights, and the weights' square (2,)."""
    rows = []
    for average, master in ema.pairs():
        other = master.to(average.device).float()
        rows.append(torch.stack([(average - other).square().sum(), other.square().sum()]))
    return torch.stack(rows).double().sum(0).cpu() if rows else torch.zeros(2, dtype=torch.float64)
