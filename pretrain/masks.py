"""Masks: which tokens the context encoder keeps, and which are predicted.

A mask kind hides the union of a few boxes, or the future, or random tubes. The boxes' size is drawn once a
step (as published) or for each clip, their places for each clip, all from the seed and counters alone, so
that a batch's masks depend neither on the world size nor on the number of workers. Lengths differ from clip
to clip; nothing is cut to fit, unless `truncate` asks for what the published collator does.
Source: V-JEPA, arXiv:2404.08471, sec. 3.2 and appendix.

Shapes: B clips, N tokens a clip, S sequences (a clip under a mask kind), M kept tokens, P hidden tokens,
T = M + P, R pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.config.base import Range
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, MaskConfig, Truncate, TubeMaskConfig
from pretrain.rng import stream

Grid = tuple[int, int, int]
MAX_REDRAWS = 20


def box_size(config: BlockMaskConfig, grid: Grid, rng: np.random.Generator) -> Grid:
    """Frames, rows and columns (in tokens) of one kind's boxes: the area asked for, at a random aspect."""
    frames, rows, columns = grid
    length = int(frames * rng.uniform(*config.temporal_scale))
    area = int(rows * columns * rng.uniform(*config.spatial_scale))
    aspect = rng.uniform(*config.ratio)
    height = round(math.sqrt(area * aspect))
    width = round(math.sqrt(area / aspect))
    return max(1, min(length, frames)), max(1, min(height, rows)), max(1, min(width, columns))


def hidden_union(config: BlockMaskConfig, size: Grid, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """bool (t, h, w): True inside any of the boxes at random places, and after max_temporal_keep.

    A union that would hide every token is drawn again; when the boxes are so large that this goes on, one
    random column of tokens through time is kept, so that there is always a context to predict from.
    """
    last = max(1, int(grid[0] * config.max_temporal_keep))
    for _ in range(MAX_REDRAWS):
        hidden = np.zeros(grid, dtype=bool)
        for _ in range(config.blocks):
            t, h, w = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(grid, size, strict=True))
            hidden[t : t + size[0], h : h + size[1], w : w + size[2]] = True
        hidden[last:] = True
        if not hidden.all():
            return hidden
    hidden[:last, rng.integers(grid[1]), rng.integers(grid[2])] = False
    return hidden


def hidden_future(config: FutureMaskConfig, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """bool (t, h, w): True after the past; at least one tubelet is kept, and one is hidden."""
    hidden = np.zeros(grid, dtype=bool)
    hidden[num_past(config.past, grid[0], rng) :] = True
    return hidden


def num_past(past: Range, tubelets: int, rng: np.random.Generator) -> int:
    """How many tubelets of a clip are its past."""
    return max(1, min(tubelets - 1, round(tubelets * rng.uniform(*past))))


def hidden_tubes(config: TubeMaskConfig, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """bool (t, h, w): True at random places, the same in every frame; at least one is kept and one hidden."""
    _, rows, columns = grid
    places = rows * columns
    kept = max(1, min(places - 1, int(places * (1.0 - config.hidden))))
    hidden = np.ones(places, dtype=bool)
    hidden[rng.permutation(places)[:kept]] = False
    return np.broadcast_to(hidden.reshape(1, rows, columns), grid).copy()


def hidden_in(config: MaskConfig, grid: Grid, rng: np.random.Generator, size: Grid | None) -> np.ndarray:
    """One clip's mask: bool (t, h, w), True where hidden. size: of its boxes; None draws one."""
    if isinstance(config, BlockMaskConfig):
        return hidden_union(config, size or box_size(config, grid, rng), grid, rng)
    if isinstance(config, FutureMaskConfig):
        return hidden_future(config, grid, rng)
    return hidden_tubes(config, grid, rng)


class Stills(NamedTuple):
    """Which clips of a batch are pictures.

    flags (B,): on the host. rows_R, is_still_B: the same where it is computed, numbers of clips and 0 or 1.
    """

    flags: tuple[bool, ...]
    rows_R: Tensor
    is_still_B: Tensor

    @classmethod
    def of(cls, flags: Sequence[bool], device: torch.device) -> Stills:
        """Of flags; only where some are and some are not is anything copied to the device."""
        flags = tuple(flags)
        if len(set(flags)) == 1:
            rows = torch.arange(len(flags) if flags[0] else 0, device=device)
            return cls(flags, rows, torch.full((len(flags),), int(flags[0]), device=device))
        is_still_B = torch.tensor(flags, dtype=torch.int64)
        return cls(flags, is_still_B.nonzero()[:, 0].to(device), is_still_B.to(device))


@dataclass(frozen=True)
class Tokens:
    """Some tokens of every sequence, sequence after sequence, where they are computed on.

    places (n,): s * N + token, in order. lengths: how many each sequence has; lengths_S the same as a tensor.
    """

    num_tokens: int
    places: Tensor
    lengths: tuple[int, ...]
    lengths_S: Tensor
    clips_S: Tensor

    @cached_property
    def sequence(self) -> Tensor:
        """Of each token (n,)."""
        return self.places // self.num_tokens

    @cached_property
    def token(self) -> Tensor:
        """Where each stands in its clip (n,)."""
        return self.places % self.num_tokens

    @cached_property
    def source(self) -> Tensor:
        """clip * N + token: where each lies in the batch of clips (n,)."""
        return self.clips_S[self.sequence] * self.num_tokens + self.token


@dataclass(frozen=True)
class Masks:
    """The masks of a batch, packed, sequence after sequence: a kind's clips, then the next kind's.

    clips, kinds (S,): the clip and the mask kind of each sequence. pictures (B,): which clips are pictures
    with one frame of tokens. kept_M, hidden_P: s * N + token, in order, no place in both; together they name
    every place once, unless the masks are truncated or the clip is a picture. kept_lengths, hidden_lengths:
    kept and hidden tokens of each sequence.

    What a step reads of them where it computes lies in one row, `laid_out`, made with the batch and brought
    to a GPU by one copy: a tensor made of lists in the midst of a step would have the host wait for the GPU.
    """

    num_tokens: int
    num_kinds: int
    clips: tuple[int, ...]
    kinds: tuple[int, ...]
    pictures: tuple[bool, ...]
    kept_M: Tensor
    hidden_P: Tensor
    kept_lengths: tuple[int, ...]
    hidden_lengths: tuple[int, ...]

    @property
    def num_clips(self) -> int:
        return len(self.pictures)

    @property
    def num_sequences(self) -> int:
        return len(self.clips)

    @property
    def shares(self) -> tuple[float, ...]:
        """What each sequence counts in a mean over clips, of each clip's mean over its mask kinds (S,)."""
        return tuple(1.0 / (self.num_clips * self.clips.count(clip)) for clip in self.clips)

    @property
    def kind_spans(self) -> tuple[slice, ...]:
        """Which sequences are of each mask kind."""
        ends = [sum(kind <= last for kind in self.kinds) for last in range(-1, self.num_kinds)]
        return tuple(slice(*each) for each in itertools.pairwise(ends))

    @property
    def _widths(self) -> list[int]:
        """Of the parts of `laid_out`; two float32 shares lie in one number's place."""
        kept, hidden, sequences = sum(self.kept_lengths), sum(self.hidden_lengths), self.num_sequences
        return [
            kept,
            hidden,
            kept + hidden,
            *4 * [sequences],
            -(-sequences // 2),
            self.num_clips,
            sum(self.pictures),
        ]

    @cached_property
    def laid_out(self) -> Tensor:
        """Everything that a step reads of them, one after the other, int64."""
        places = np.concatenate([self.kept_M.numpy(), self.hidden_P.numpy()])
        rank_T = np.empty_like(places)
        rank_T[np.argsort(places, kind="stable")] = np.arange(len(places))
        shares = np.zeros(2 * -(-self.num_sequences // 2), dtype=np.float32)
        shares[: self.num_sequences] = self.shares
        lists = (self.clips, self.kinds, self.kept_lengths, self.hidden_lengths)
        stills = np.asarray(self.pictures, dtype=np.int64)
        numbers = [np.asarray(each, dtype=np.int64) for each in lists]
        parts = [places, rank_T, *numbers, shares.view(np.int64), stills, np.flatnonzero(stills)]
        return torch.from_numpy(np.concatenate(parts))

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.laid_out.split(self._widths)

    @cached_property
    def kept(self) -> Tokens:
        """The tokens that the context encoder is shown."""
        return Tokens(self.num_tokens, self.kept_M, self.kept_lengths, self._parts[5], self._parts[3])

    @cached_property
    def hidden(self) -> Tokens:
        """The tokens that are predicted."""
        return Tokens(self.num_tokens, self.hidden_P, self.hidden_lengths, self._parts[6], self._parts[3])

    @property
    def rank_T(self) -> Tensor:
        """Where each kept token, then each hidden one, stands when every sequence is in order (T,)."""
        return self._parts[2]

    @property
    def kinds_S(self) -> Tensor:
        return self._parts[4]

    @cached_property
    def lengths_S(self) -> Tensor:
        """Kept and hidden tokens of each sequence (S,)."""
        return self._parts[5] + self._parts[6]

    @property
    def shares_S(self) -> Tensor:
        """`shares` (S,), float32."""
        return self._parts[7].view(torch.float32)[: self.num_sequences]

    @property
    def stills(self) -> Stills:
        return Stills(self.pictures, self._parts[9], self._parts[8])

    @cached_property
    def is_still_S(self) -> Tensor:
        """1 of a sequence that is of a picture, else 0 (S,)."""
        return self._parts[8][self._parts[3]]

    @property
    def shape(self) -> Masks:
        """The same without places."""
        nowhere = torch.empty(0, dtype=torch.int64)
        return replace(self, kept_M=nowhere, hidden_P=nowhere)

    def over(self, numbers: Tensor) -> Masks:
        """The same, as views of what was `laid_out`, wherever that lies now; more may follow it there."""
        widths = self._widths
        numbers = numbers[: sum(widths)]
        found = replace(
            self, kept_M=numbers[: widths[0]], hidden_P=numbers[widths[0] : widths[0] + widths[1]]
        )
        vars(found)["laid_out"] = numbers  # as the property keeps it
        return found

    def to(self, device: torch.device) -> Masks:
        """By one copy; the host goes on meanwhile if the numbers lie in pinned memory."""
        return self.over(self.laid_out.to(device, non_blocking=True))


def most_numbers(clips: int, tokens: int, kinds: int) -> int:
    """How many numbers `laid_out` has at most: every place of every mask kind is kept or hidden."""
    return clips * kinds * (2 * tokens + 5) + 2 * clips + 1


def sample_masks(
    configs: Sequence[MaskConfig],
    grid: Grid,
    seed: int,
    step: int,
    positions: Sequence[int],
    *,
    truncate: Truncate = "none",
    pictures: Sequence[bool] = (),
    picture_configs: Sequence[MaskConfig] = (),
) -> Masks:
    """Masks of every kind for the clips at `positions` of the stream, at optimizer step `step`.

    truncate: `raster` cuts, as Meta's collator does, the kept tokens of a kind to the fewest that a clip of
    these positions keeps, and the hidden ones to the fewest hidden, in raster order: the last frames go.
    pictures: which clips are pictures with tokens of one frame; their kinds are picture_configs, numbered
    after the others.
    """
    pictures = tuple(pictures) or (False,) * len(positions)
    tokens = math.prod(grid)
    clips: list[int] = []
    kinds: list[int] = []
    kept: list[np.ndarray] = []
    hidden: list[np.ndarray] = []
    for kind, config in enumerate((*configs, *picture_configs)):
        is_picture = kind >= len(configs)
        own_grid = (1, *grid[1:]) if is_picture else grid
        size = None
        if isinstance(config, BlockMaskConfig) and config.sizes == "batch":
            size = box_size(config, own_grid, stream(seed, "mask-size", step, kind))
        own = [clip for clip, found in enumerate(pictures) if found == is_picture]
        drawn = [
            hidden_in(config, own_grid, stream(seed, "mask", positions[clip], kind), size).reshape(-1)
            for clip in own
        ]
        clips += own
        kinds += [kind] * len(own)
        for found, is_wanted in ((kept, False), (hidden, True)):
            rows = [np.flatnonzero(row == is_wanted) for row in drawn]
            shortest = min(map(len, rows), default=0)
            found += [row[:shortest] for row in rows] if truncate == "raster" else rows
    return Masks(
        num_tokens=tokens,
        num_kinds=len(configs) + len(picture_configs),
        clips=tuple(clips),
        kinds=tuple(kinds),
        pictures=tuple(pictures),
        kept_M=_places(kept, tokens),
        hidden_P=_places(hidden, tokens),
        kept_lengths=tuple(map(len, kept)),
        hidden_lengths=tuple(map(len, hidden)),
    )


def _places(rows: Sequence[np.ndarray], tokens: int) -> Tensor:
    placed = [sequence * tokens + row for sequence, row in enumerate(rows)]
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *placed]))
