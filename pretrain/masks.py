"""Multi-block tube masks: which tokens the context encoder keeps, and which are predicted.

A mask kind hides the union of a few boxes. The boxes' size is drawn once a step (as published), their
places once a clip, both from the seed and counters alone, so that a batch's masks depend neither on the
world size nor on the number of workers. Lengths differ from clip to clip; nothing is cut to fit.
Source: V-JEPA, arXiv:2404.08471, sec. 3.2 and appendix.

Shapes: K mask kinds, B clips, N tokens a clip, S = K × B sequences, M kept tokens, P hidden tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pretrain.config import MaskConfig
from pretrain.rng import stream

Grid = tuple[int, int, int]
MAX_REDRAWS = 20


def box_size(config: MaskConfig, grid: Grid, rng: np.random.Generator) -> Grid:
    """Frames, rows and columns (in tokens) of one kind's boxes: the area asked for, at a random aspect."""
    frames, rows, columns = grid
    aspect = rng.uniform(*config.ratio)
    area = config.spatial_scale * rows * columns
    height = round(math.sqrt(area * aspect))
    width = round(math.sqrt(area / aspect))
    length = round(frames * config.temporal_scale)
    return max(1, min(length, frames)), max(1, min(height, rows)), max(1, min(width, columns))


def hidden_union(size: Grid, blocks: int, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """bool (t, h, w): True inside any of `blocks` boxes at random places.

    A union that would hide every token is drawn again; when the boxes are so large that this goes on, one
    random column of tokens through time is kept, so that there is always a context to predict from.
    """
    for _ in range(MAX_REDRAWS):
        hidden = np.zeros(grid, dtype=bool)
        for _ in range(blocks):
            t, h, w = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(grid, size, strict=True))
            hidden[t : t + size[0], h : h + size[1], w : w + size[2]] = True
        if not hidden.all():
            return hidden
    hidden[:, rng.integers(grid[1]), rng.integers(grid[2])] = False
    return hidden


def mask_of(config: MaskConfig, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """One clip's mask with a size of its own: bool (t, h, w), True where hidden."""
    return hidden_union(box_size(config, grid, rng), config.blocks, grid, rng)


@dataclass(frozen=True)
class Masks:
    """The masks of a batch, packed; sequence s = kind * B + clip.

    kept_M, hidden_P: s * N + token, in order; together they name every place once.
    kept_lengths: kept tokens of each sequence. hidden_lengths: hidden tokens of each sequence.
    """

    num_kinds: int
    num_clips: int
    num_tokens: int
    kept_M: Tensor
    hidden_P: Tensor
    kept_lengths: tuple[int, ...]
    hidden_lengths: tuple[int, ...]

    @property
    def num_sequences(self) -> int:
        return self.num_kinds * self.num_clips

    def source(self, places: Tensor) -> Tensor:
        """clip * N + token for places s * N + token: where the token lies in the batch of clips."""
        clips = places // self.num_tokens % self.num_clips
        return clips * self.num_tokens + places % self.num_tokens

    @property
    def shape(self) -> Masks:
        """The same without places."""
        nowhere = torch.empty(0, dtype=torch.int64)
        return self.at(nowhere, nowhere)

    def at(self, kept_M: Tensor, hidden_P: Tensor) -> Masks:
        """The same with these places."""
        return replace(self, kept_M=kept_M, hidden_P=hidden_P)

    def to(self, device: torch.device) -> Masks:
        return self.at(self.kept_M.to(device, non_blocking=True), self.hidden_P.to(device, non_blocking=True))


def sample_masks(
    configs: Sequence[MaskConfig], grid: Grid, seed: int, step: int, positions: Sequence[int]
) -> Masks:
    """Masks of every kind for the clips at `positions` of the stream, at optimizer step `step`."""
    rows = []
    for kind, config in enumerate(configs):
        size = box_size(config, grid, stream(seed, "mask-size", step, kind))
        for position in positions:
            rng = stream(seed, "mask", position, kind)
            rows.append(hidden_union(size, config.blocks, grid, rng).reshape(-1))
    hidden_SN = torch.from_numpy(np.stack(rows))
    kept_SN = ~hidden_SN
    return Masks(
        num_kinds=len(configs),
        num_clips=len(positions),
        num_tokens=hidden_SN.shape[1],
        kept_M=kept_SN.flatten().nonzero().squeeze(1),
        hidden_P=hidden_SN.flatten().nonzero().squeeze(1),
        kept_lengths=tuple(kept_SN.sum(1).tolist()),
        hidden_lengths=tuple(hidden_SN.sum(1).tolist()),
    )
