"""One process, plain PyTorch, float32: the reference that DeepSpeed is tested against."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor, nn

from pretrain.config import Plan
from pretrain.objective.base import Batch, Objective, Output
from pretrain.optim import build_optimizer, clip_whole, decaying_names
from pretrain.strategy.base import Update
from pretrain.strategy.shards import ReplicatedShards


class SingleBackend:
    def __init__(self, plan: Plan, module: nn.Module) -> None:
        self._module = module
        self._optim = plan.config.optim
        self._share = 1.0 / plan.micro_batches
        self._optimizer = build_optimizer(module, plan.config.optim)
        self.decaying = decaying_names(module)
        self.shards = ReplicatedShards(module, self._optimizer, rank=0, world=1)

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def split_copy(self, *_: object) -> None:
        return None

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        return cast(Objective, self._module)(batch, targets)

    def backward(self, loss: Tensor) -> None:
        (loss * self._share).backward()

    def step(self) -> Update:
        norm = float(clip_whole(self._module, self._optim))  # the host's one wait for a GPU in a step
        is_finite = math.isfinite(norm)
        if is_finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(is_finite, norm)
