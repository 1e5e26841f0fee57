"""Who owns which fragment of the float32 master weights, of the gradients and of the optimizer's averages.

The same layout serves the moving average (each rank moves what it owns) and the checkpoint (each rank writes
what it owns, and any rank at any world size reads whatever it needs back).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.ema import Fragment

Read = Callable[[str, Fragment], Tensor]
"""(kind, fragment) to the stored float32 elements (numel,)."""

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


def tensor_name(kind: str, fragment: Fragment) -> str:
    """`exp_avg/encoder.norm.weight@128`: the name of a fragment in a checkpoint file."""
    return f"{kind}/{fragment.name}@{fragment.start}"


class Shards(Protocol):
    """This rank's part of the trainable module's state.

    fragments, masters: equally long; masters are flat float32 views that follow every optimizer step.
    """

    fragments: list[Fragment]
    masters: list[Tensor]

    def optimizer_step(self) -> int:
        """Steps that AdamW has counted; 0 before the first."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What this rank owns, by `tensor_name`."""
        ...

    def gradients(self) -> list[tuple[str, Tensor]]:
        """(parameter, live gradient of what this rank owns of it), between the last backward and the step."""
        ...

    def load(self, read: Read, optimizer_step: int) -> None:
        """Overwrite weights and averages; afterwards every rank's forward weights are the stored ones."""
        ...


def part(name: str, size: int, rank: int, world: int) -> Fragment | None:
    """The rank-th of `world` parts of a parameter's elements, split as ZeRO-3 does; None if it is empty."""
    each = -(-size // world)
    start, end = min(size, rank * each), min(size, (rank + 1) * each)
    return Fragment(name, start, end - start) if end > start else None


def chunks(parameters: Mapping[str, Tensor], rank: int, world: int) -> Iterator[tuple[Fragment, Tensor]]:
    """The rank-th part of each parameter, with a flat view of it."""
    for name, parameter in parameters.items():
        own = part(name, parameter.numel(), rank, world)
        if own is not None:
            yield own, parameter.detach().view(-1)[own.start : own.start + own.numel]


def part_of_encoder(shards: Shards) -> list[tuple[Fragment, Tensor]]:
    """This rank's fragments of the objective's encoder, by their names there, and the live master weights."""
    prefix = "encoder."
    return [
        (Fragment(f.name.removeprefix(prefix), f.start, f.numel), master)
        for f, master in zip(shards.fragments, shards.masters, strict=True)
        if f.name.startswith(prefix)
    ]


def step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Where AdamW counts a parameter's steps: fused, beside it, else on the host."""
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    return parameter.device if is_fused else torch.device("cpu")


class ReplicatedShards:
    """Every rank holds everything; rank r owns the r-th chunk of each parameter (one process, ZeRO-0)."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> None:
        self._optimizer = optimizer
        self._parameters = dict(module.named_parameters())
        own = list(chunks(self._parameters, rank, world))
        self.fragments, self.masters = [fragment for fragment, _ in own], [master for _, master in own]

    def optimizer_step(self) -> int:
        steps = [state["step"] for state in self._optimizer.state.values() if "step" in state]
        return int(torch.stack(steps).max()) if steps else 0

    def tensors(self) -> dict[str, Tensor]:
        found = {}
        for fragment, master in zip(self.fragments, self.masters, strict=True):
            found[tensor_name(MASTER, fragment)] = master
            state = self._optimizer.state.get(self._parameters[fragment.name], {})
            for kind in MOMENTS:
                if kind in state:
                    own = state[kind].view(-1)[fragment.start : fragment.start + fragment.numel]
                    found[tensor_name(kind, fragment)] = own
        return found

    def gradients(self) -> list[tuple[str, Tensor]]:
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        return [
            (f.name, gradients[f.name].view(-1)[f.start : f.start + f.numel])
            for f in self.fragments
            if f.name in gradients
        ]

    @torch.no_grad()
    def load(self, read: Read, optimizer_step: int) -> None:
        for name, parameter in self._parameters.items():
            whole = Fragment(name, 0, parameter.numel())
            parameter.copy_(read(MASTER, whole).view_as(parameter))
            if optimizer_step:
                averages = {kind: read(kind, whole).view_as(parameter).to(parameter) for kind in MOMENTS}
                step = torch.tensor(float(optimizer_step), device=step_device(self._optimizer, parameter))
                self._optimizer.state[parameter] = {"step": step, **averages}


class FlatShards:
    """What ZeRO-1, 2 and 3 share: a rank owns flat float32 partitions, one a group, that hold its fragments.

    fragments, masters: as in `Shards`. places: the partition of each, and where in it the fragment begins.
    """

    def __init__(self, zero_optimizer: Any) -> None:
        self._zero = zero_optimizer
        self.fragments: list[Fragment] = []
        self.masters: list[Tensor] = []
        self._places: list[tuple[int, int]] = []

    @property
    def flats(self) -> list[Tensor]:
        raise NotImplementedError

    def gradients(self) -> list[tuple[str, Tensor]]:
        """(parameter, live gradient of what this rank owns of it), between the last backward and the step."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Bring the forward weights of all ranks to what the partitions hold."""
        raise NotImplementedError

    def optimizer_step(self) -> int:
        states = (self._zero.optimizer.state.get(flat, {}) for flat in self.flats)
        return max((int(state["step"]) for state in states if "step" in state), default=0)

    def tensors(self) -> dict[str, Tensor]:
        found, flats = {}, self.flats
        for fragment, master, (group, offset) in zip(self.fragments, self.masters, self._places, strict=True):
            found[tensor_name(MASTER, fragment)] = master
            state = self._zero.optimizer.state.get(flats[group], {})
            for kind in MOMENTS:
                if kind in state:
                    found[tensor_name(kind, fragment)] = state[kind][offset : offset + fragment.numel]
        return found

    @torch.no_grad()
    def load(self, read: Read, optimizer_step: int) -> None:
        flats = self.flats
        if optimizer_step:
            for flat in flats:
                averages = {kind: torch.zeros_like(flat) for kind in MOMENTS}
                step = torch.tensor(float(optimizer_step), device=step_device(self._zero.optimizer, flat))
                self._zero.optimizer.state[flat] = {"step": step, **averages}
        for fragment, master, (group, offset) in zip(self.fragments, self.masters, self._places, strict=True):
            master.copy_(read(MASTER, fragment))
            if optimizer_step:
                for kind in MOMENTS:
                    own = self._zero.optimizer.state[flats[group]][kind][offset : offset + fragment.numel]
                    own.copy_(read(kind, fragment))
        self.refresh()

    def _offloaded_gradients(self) -> list[tuple[str, Tensor]]:
        """Of an optimizer in host memory: parts of the partitions' gradients."""
        flats = self.flats
        found = []
        for fragment, (group, offset) in zip(self.fragments, self._places, strict=True):
            gradient = flats[group].grad
            assert gradient is not None, "asked for between the last backward and the step"
            found.append((fragment.name, gradient[offset : offset + fragment.numel]))
        return found


class PartitionedShards(FlatShards):
    """ZeRO-1 and ZeRO-2, by DeepSpeed's own mapping."""

    def __init__(self, module: nn.Module, zero_optimizer: Any) -> None:
        super().__init__(zero_optimizer)
        self._parameters = []
        for name, parameter in module.named_parameters():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # set by DeepSpeed
            if mapping is None:
                continue
            address = mapping.lp_fragment_address
            self.fragments.append(Fragment(name, address.start, address.numel))
            self.masters.append(mapping.hp_fragment.detach())
            self._places.append((mapping.param_group_index, mapping.hp_fragment_address.start))
            self._parameters.append(parameter)

    @property
    def flats(self) -> list[Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    def refresh(self) -> None:
        self._zero.update_lp_params()

    def gradients(self) -> list[tuple[str, Tensor]]:
        if self._zero.cpu_offload:
            return self._offloaded_gradients()
        return [
            (fragment.name, parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group))  # type: ignore[attr-defined]
            for fragment, parameter in zip(self.fragments, self._parameters, strict=True)
        ]
