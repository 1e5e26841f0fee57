"""The target's moving average, sharded: each rank moves only the fragments whose master weights it owns.

A fragment is a run of elements of one flattened parameter. Its average is float32 and lies beside the rank's
own float32 master shard, so the update is local and exact. The forward copy of the target, in the precision
of training, is then written anew: whole on every rank, by one padded gather that runs while the next batch is
waited for; or into the target's own shards (strategy/zero3.py).
Source: V-JEPA, arXiv:2404.08471, sec. 3; sharding in docs/decisions/0003-fragments.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pretrain.parts import AVERAGE, marked


@dataclass(frozen=True)
class Fragment:
    """Elements start .. start + numel of the flattened parameter `name`."""

    name: str
    start: int
    numel: int


Gather = Callable[[Tensor], Callable[[], Tensor]]
"""Starts to gather a flat tensor (n,), equally long on every rank; the answer waits for all (world, n)."""


class ForwardCopy(Protocol):
    """The target that is run, in the precision of training; one that is never given a gradient."""

    def begin(self, averages: Sequence[Tensor]) -> None:
        """Start to write this rank's averages, in the order of its fragments; every rank calls it."""
        ...

    def finish(self) -> None:
        """Wait until what was begun is written on all ranks; nothing where nothing was begun."""
        ...


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


class WholeCopy:
    """The whole target on every rank.

    fragments: for every rank, what it owns of the target's parameters (names as in `target`).
    precision: what the target is brought to.
    """

    def __init__(
        self,
        target: nn.Module,
        fragments: Sequence[Sequence[Fragment]],
        gather: Gather,
        precision: torch.dtype = torch.float32,
    ) -> None:
        target.to(precision)
        whole = {name: p.detach().view(-1) for name, p in target.named_parameters()}
        self._like = next(iter(whole.values()))
        # of every rank, where its averages go, and how long they are
        self._places = [[whole[f.name][f.start : f.start + f.numel] for f in own] for own in fragments]
        self._sizes = [[f.numel for f in own] for own in fragments]
        self._padded = max(1, *map(sum, self._sizes))
        self._gather = gather
        self._wait: Callable[[], Tensor] | None = None

    @torch.no_grad()
    def begin(self, averages: Sequence[Tensor]) -> None:
        self.finish()
        if len(self._places) == 1:  # nothing to gather
            copy_each(self._places[0], averages)
            return
        flat = self._like.new_empty(self._padded)
        used = flat[: sum(average.numel() for average in averages)]
        copy_each(used.split([average.numel() for average in averages]), averages)
        self._wait = self._gather(flat)

    @torch.no_grad()
    def finish(self) -> None:
        if self._wait is None:
            return
        rows, self._wait = self._wait(), None
        pieces = [row[: sum(own)].split(own) for row, own in zip(rows, self._sizes, strict=True) if own]
        copy_each(list(itertools.chain(*self._places)), list(itertools.chain(*pieces)))


def copy_each(to: Sequence[Tensor], those: Sequence[Tensor]) -> None:
    """Copy tensors over others, all in a few launches where they lie on one device."""
    if to:
        torch._foreach_copy_(list(to), list(those))


class ShardedEma:
    """This rank's part of the moving average of a target.

    fragments: what it owns. begin: what the average begins with, flat, one a fragment; it is kept and moved.
    masters: its float32 master weights, flat and live, one a fragment; none of a target that never moves.
    """

    def __init__(
        self,
        fragments: Sequence[Fragment],
        begin: Sequence[Tensor],
        masters: Sequence[Tensor],
        copy: ForwardCopy,
    ) -> None:
        self.fragments, self.average = list(fragments), list(begin)
        self._masters, self._copy = list(masters), copy
        self.refresh()

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """average = momentum * average + (1 - momentum) * master, in float32, without communication."""
        if self.average:
            torch._foreach_lerp_(self.average, self._masters, 1.0 - momentum)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """This rank's averages and the master weights they follow, flat; none of one that never moves."""
        return list(zip(self.average, self._masters, strict=False))

    def refresh(self) -> None:
        """Begin to write the averages of all ranks into the forward copy, in its own precision."""
        self._copy.begin(self.average)

    @marked(AVERAGE)
    def ready(self) -> None:
        """Wait for what `refresh` began: the forward copy may be run."""
        self._copy.finish()
