"""The sharded moving average against a plain one, on one process with ranks played one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.ema import Fragment, ShardedEma, WholeCopy, check_tiling


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def cut(module: nn.Module, cuts: list[int]) -> list[list[Fragment]]:
    """The module's elements laid end to end and cut at the given places, a piece a rank."""
    edges = [0, *sorted(cuts), sum(p.numel() for p in module.parameters())]
    ranks: list[list[Fragment]] = []
    for low, high in itertools.pairwise(edges):
        own, offset = [], 0
        for name, parameter in module.named_parameters():
            start, end = max(low - offset, 0), min(high - offset, parameter.numel())
            if end > start:
                own.append(Fragment(name, start, end - start))
            offset += parameter.numel()
        ranks.append(own)
    return ranks


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 80), max_size=4), momenta=st.lists(st.floats(0, 1), min_size=1, max_size=4)
)
def test_any_sharding_equals_a_plain_float32_average(cuts: list[int], momenta: list[float]) -> None:
    context, plain = make_module(), make_module()
    fragments = cut(context, cuts)
    flat = {name: p.detach().view(-1) for name, p in context.named_parameters()}
    targets = [make_module() for _ in fragments]
    sent: list[Tensor] = []

    def gather(mine: Tensor) -> Callable[[], Tensor]:
        sent.append(mine)
        return lambda: torch.stack(sent)

    ranks = []
    for target, own in zip(targets, fragments, strict=True):
        masters = [flat[f.name][f.start : f.start + f.numel] for f in own]
        begin = [master.clone() for master in masters]
        ranks.append(ShardedEma(own, begin, masters, WholeCopy(target, fragments, gather)))
    for ema in ranks:
        ema.ready()
    for number, momentum in enumerate(momenta):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in context.parameters():
                parameter.add_(torch.randn_like(parameter))
            for mine, theirs in zip(plain.parameters(), context.parameters(), strict=True):
                mine.lerp_(theirs, 1 - momentum)
        sent.clear()
        for ema in ranks:
            ema.update(momentum)
            ema.refresh()
        for ema, target in zip(ranks, targets, strict=True):
            ema.ready()
            for name, parameter in target.named_parameters():
                assert torch.equal(parameter, plain.get_parameter(name)), name


def test_momentum_one_keeps_the_target_and_zero_copies_the_context() -> None:
    context, target = make_module(), make_module()
    fragments = cut(context, [])
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.add_(1.0)
    masters = [context.get_parameter(f.name).detach().view(-1) for f in fragments[0]]
    copy = WholeCopy(target, fragments, lambda mine: lambda: mine[None])
    ema = ShardedEma(fragments[0], [master.clone() for master in masters], masters, copy)
    before = [average.clone() for average in ema.average]
    ema.update(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, ema.average, strict=True))
    ema.update(0.0)
    ema.refresh()
    ema.ready()
    assert all(torch.equal(target.get_parameter(n), p) for n, p in context.named_parameters())


@pytest.mark.parametrize(
    "fragments",
    [
        [Fragment("w", 0, 4)],
        [Fragment("w", 0, 4), Fragment("w", 5, 5)],
        [Fragment("w", 0, 6), Fragment("w", 5, 5)],
        [Fragment("w", 0, 10), Fragment("other", 0, 1)],
    ],
)
def test_fragments_that_do_not_tile_are_refused(fragments: list[Fragment]) -> None:
    with pytest.raises(AssertionError):
        check_tiling(fragments, {"w": 10})
