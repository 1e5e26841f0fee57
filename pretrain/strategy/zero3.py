"""ZeRO-3: weights in shards too, gathered module by module while they are run; the target is held so as well.

DeepSpeed splits each parameter's elements evenly over the ranks, the last part padded (`part` in shards.py),
and so it splits the target's: this rank's part of the moving average is written straight into this rank's
part of the target, without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.ema import Fragment, copy_each
from pretrain.strategy.shards import FlatShards, part


class Zero3Shards(FlatShards):
    """A rank's partitions, one a sub-group of DeepSpeed's."""

    def __init__(self, module: nn.Module, zero_optimizer: Any, rank: int, world: int) -> None:
        super().__init__(zero_optimizer)
        self._gradient_places: list[tuple[int, int]] = []
        position = {
            id(parameter): (group, index)
            for group, parameters in enumerate(zero_optimizer.fp16_groups)
            for index, parameter in enumerate(parameters)
        }
        flats = self.flats
        for name, parameter in module.named_parameters():
            own = part(name, parameter.ds_numel, rank, world)  # type: ignore[attr-defined]  # set by DeepSpeed
            if own is None:
                continue
            group, offset, _ = zero_optimizer.grad_position[zero_optimizer.get_param_id(parameter)]
            self.fragments.append(own)
            self.masters.append(flats[group].detach()[offset : offset + own.numel])
            self._places.append((group, offset))
            self._gradient_places.append(position[id(parameter)])

    @property
    def flats(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def refresh(self) -> None:
        """Without communication but for small weights, which every rank keeps whole."""
        self._zero.parameter_offload.partition_all_parameters()
        for half, full in zip(self._zero.fp16_partitioned_groups_flat, self.flats, strict=True):
            half.data.copy_(full.data)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def gradients(self) -> list[tuple[str, Tensor]]:
        if self._zero.offload_optimizer:
            return self._offloaded_gradients()
        return [
            (fragment.name, self._zero.averaged_gradients[group][index].view(-1)[: fragment.numel])
            for fragment, (group, index) in zip(self.fragments, self._gradient_places, strict=True)
        ]


class SplitCopy:
    """The target in shards, gathered module by module while it is run.

    fragments: what this rank owns of it. config: what DeepSpeed is told.
    """

    def __init__(
        self,
        target: nn.Module,
        fragments: Sequence[Fragment],
        config: dict[str, Any],
        precision: torch.dtype,
    ) -> None:
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.utils.timer import NoopTimer

        target.to(precision)
        # No small weight is kept whole between forwards: it would stay as it was when its shard is written.
        self._zero = DeepSpeedZeRoOffload(
            target, timers=NoopTimer(), ds_config=config, param_persistence_threshold=0
        )
        parameters = dict(target.named_parameters())
        self._shards = [parameters[f.name].ds_tensor.data.view(-1)[: f.numel] for f in fragments]  # type: ignore[attr-defined]

    @torch.no_grad()
    def begin(self, averages: Sequence[Tensor]) -> None:
        self._zero.partition_all_parameters()  # what a forward left gathered is let go
        copy_each(self._shards, averages)

    def finish(self) -> None:
        """Nothing is under way: a shard is written at once."""
