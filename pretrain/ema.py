"""The target's moving average, sharded: each rank moves only the fragments whose master weights it owns.

A fragment is a run of elements of one flattened parameter. Its average is float32 and lies beside the rank's
own float32 master shard, so the update is local and exact. The forward copy of the target, in the precision
of training, is then refreshed on every rank by one padded gather.
Source: V-JEPA, arXiv:2404.08471, sec. 3; sharding in docs/decisions/0003-fragments.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """Elements start .. start + numel of the flattened parameter `name`."""

    name: str
    start: int
    numel: int


Gather = Callable[[Tensor], Tensor]
"""A flat tensor (n,), equally long on every rank, to all ranks' tensors (world, n)."""


def check_tiling(fragments: Sequence[Fragment], sizes: dict[str, int]) -> None:
    """Assert that the fragments of all ranks cover each parameter once.

    sizes: elements of each parameter by name.
    """
    reached = dict.fromkeys(sizes, 0)
    for fragment in sorted(fragments, key=lambda f: (f.name, f.start)):
        assert fragment.name in reached, f"a fragment of {fragment.name}, which the target has not"
        assert fragment.start == reached[fragment.name], (
            f"{fragment.name}: gap or overlap at {fragment.start}"
        )
        reached[fragment.name] += fragment.numel
    missing = [name for name, size in sizes.items() if reached[name] != size]
    assert not missing, f"fragments leave parts of {missing[:3]} uncovered"


class ShardedEma:
    """The moving average of a target module, over the ranks of a gather.

    fragments: for every rank, what it owns of the target's parameters (names as in `target`).
    masters: this rank's float32 master weights, flat and live, one a fragment of its own; none are needed of
    a target that never moves.
    target: the forward copy, equal on all ranks, never given a gradient, brought to `precision`.
    begins_as_target: the average begins with what the target holds; otherwise with the masters.
    """

    def __init__(
        self,
        target: nn.Module,
        fragments: Sequence[Sequence[Fragment]],
        rank: int,
        masters: Sequence[Tensor],
        gather: Gather,
        precision: torch.dtype = torch.float32,
        *,
        begins_as_target: bool = False,
    ) -> None:
        self._parameters = {name: p.detach().view(-1) for name, p in target.named_parameters()}
        check_tiling(
            [f for own in fragments for f in own], {n: p.numel() for n, p in self._parameters.items()}
        )
        self.target = target
        self.fragments = list(fragments[rank])
        self._everybody = fragments
        self._masters = list(masters)
        self._gather = gather
        self._padded = max(1, *(sum(f.numel for f in own) for own in fragments))
        held = [self._parameters[f.name][f.start : f.start + f.numel] for f in self.fragments]
        self.average = [
            begin.detach().float().clone() for begin in (held if begins_as_target else self._masters)
        ]
        target.to(precision)
        self._parameters = {name: p.detach().view(-1) for name, p in target.named_parameters()}

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """average = momentum * average + (1 - momentum) * master, in float32, without communication."""
        if self.average:
            torch._foreach_lerp_(self.average, self._masters, 1.0 - momentum)

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the averages of all ranks into the forward copy, in its own precision."""
        first = next(iter(self._parameters.values()))
        flat = first.new_zeros(self._padded)
        offset = 0
        for average in self.average:
            flat[offset : offset + average.numel()] = average
            offset += average.numel()
        for row, own in zip(self._gather(flat), self._everybody, strict=True):
            offset = 0
            for f in own:
                self._parameters[f.name][f.start : f.start + f.numel] = row[offset : offset + f.numel]
                offset += f.numel
