"""The most tokens that masks may keep, or hide, in a forward: what memory is planned for.

Lengths differ from clip to clip, and those of a micro-batch add up. A rigorous bound would have all boxes of
every clip in one place, which no run sees, and would ask for twice the memory. Taken is the mean of a
micro-batch's total and six of its standard deviations: were it normal, one forward in 10⁹ would hold more.
Never taken is more than a kind of mask can keep at all, so that kinds that always keep as much are exact.
Mean and deviation are those of clips drawn here, of the boxes' sizes that keep most and least: a step's boxes
all have one size. A run's seed is not asked, so that runs that differ in it are planned alike.

Shapes: N tokens a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, MaskConfig
from pretrain.masks import Grid, Masks, box_size, hidden_in, num_past
from pretrain.rng import stream

DEVIATIONS = 6.0
DRAWN_SIZES, DRAWN_CLIPS = 128, 192
ENDS = 3  # sizes of boxes that are looked at from either end


class Kept(NamedTuple):
    """Tokens of a clip that a kind keeps: of clips drawn, and the fewest and most that there can be."""

    mean: float
    variance: float
    least: int
    most: int


def most_kept_and_hidden(configs: Sequence[MaskConfig], grid: Grid, clips: int) -> tuple[Masks, Masks]:
    """Masks without places, of `clips` clips of which as much is kept, and hidden, as is planned for."""
    kinds = tuple(configs)
    longest = _lengths([_kept(each, grid)[1] for each in kinds], clips, is_most=True)
    shortest = _lengths([_kept(each, grid)[0] for each in kinds], clips, is_most=False)
    return _masks(longest, grid, clips), _masks(shortest, grid, clips)


def _lengths(kinds: Sequence[Kept], clips: int, *, is_most: bool) -> list[int]:
    """Kept tokens of every sequence, kind after kind.

    The first of a kind is as long as one clip may be, the others share what is left of the total: how long
    the longest is counts where sequences are laid out to it.
    """
    way = DEVIATIONS if is_most else -DEVIATIONS
    variance = sum(kind.variance for kind in kinds)

    def within(value: float, kind: Kept) -> float:
        return min(max(value, kind.least), kind.most)

    found: list[int] = []
    for kind in kinds:
        # Of the deviation of all kinds together each has its share of the variance.
        share = kind.variance / math.sqrt(variance) if variance else 0.0
        total = clips * within(kind.mean + way * share / math.sqrt(clips), kind)
        first = round(within(kind.mean + way * math.sqrt(kind.variance), kind))
        others = (total - first) / max(1, clips - 1)
        each = math.ceil(others) if is_most else math.floor(others)
        found += [first] + [round(within(each, kind))] * (clips - 1)
    return found


def _masks(kept: Sequence[int], grid: Grid, clips: int) -> Masks:
    tokens, kinds, nowhere = math.prod(grid), len(kept) // clips, torch.empty(0, dtype=torch.int64)
    return Masks(
        num_tokens=tokens,
        num_kinds=kinds,
        clips=tuple(range(clips)) * kinds,
        kinds=tuple(kind for kind in range(kinds) for _ in range(clips)),
        pictures=(False,) * clips,
        kept_M=nowhere,
        hidden_P=nowhere,
        kept_lengths=tuple(kept),
        hidden_lengths=tuple(tokens - each for each in kept),
    )


@cache
def _kept(config: MaskConfig, grid: Grid) -> tuple[Kept, Kept]:
    """Of the sizes of boxes that keep least, and most; the same twice where there is one."""
    tokens, place = math.prod(grid), grid[1] * grid[2]
    if isinstance(config, FutureMaskConfig):
        ends = [num_past((end, end), grid[0], stream(0, "mask-ends")) * place for end in config.past]
        drawn = _drawn(lambda rng: num_past(config.past, grid[0], rng) * place)
        found = Kept(float(np.mean(drawn)), float(np.var(drawn)), ends[0], ends[1])
        return found, found
    if not isinstance(config, BlockMaskConfig):  # tubes: as many in every clip
        always = int((~hidden_in(config, grid, stream(0, "mask-lengths", 0), None)).sum())
        return (Kept(always, 0.0, always, always),) * 2
    sizes = sorted(
        {box_size(config, grid, stream(0, "mask-sizes", number)) for number in range(DRAWN_SIZES)},
        key=lambda size: (math.prod(size), size),
    )
    most = min(tokens - math.prod(sizes[0]), max(1, int(grid[0] * config.max_temporal_keep)) * place)

    def kept(size: Grid | None) -> Kept:
        drawn = _drawn(lambda rng: int((~hidden_in(config, grid, rng, size)).sum()))
        return Kept(float(np.mean(drawn)), float(np.var(drawn)), 1, max(1, most))

    if config.sizes == "clip":
        return (kept(None),) * 2
    ends_of = sorted((kept(size) for size in {*sizes[:ENDS], *sizes[-ENDS:]}), key=lambda each: each.mean)
    return ends_of[0], ends_of[-1]


def _drawn(count: Callable[[np.random.Generator], int]) -> list[int]:
    return [count(stream(0, "mask-lengths", number)) for number in range(DRAWN_CLIPS)]
