"""Tokens of frozen encoders: of a batch of clips, and of a split as often as heads are trained on it.

Tokens of a large set do not fit in memory, and often on no disk: 169,000 clips of two segments of 2,048
tokens of width 1,024 are 1.4 TB in float16. So the first pass writes them to files of float16 where all of
them fit into a bound and into half of the disk's free space; else every epoch decodes and encodes the clips
again. Both give the heads the same numbers in the same order.

Shapes: B clips, V crops, S segments, T frames, N tokens of a segment, D width.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.config import DataConfig
from pretrain.data.augment import normalise
from pretrain.data.reader import Clip, ClipReader
from pretrain.model.vit import Encoder
from pretrain.probe.views import looks, read_ahead

KEPT_BYTES = 64 << 30  # of a split's tokens, all encoders together
UNREADABLE_ONE_IN = 10


@dataclass(frozen=True)
class Looked:
    """Clips that could be read: their segments, and looks at them as bytes (B, V, S, T, H, W, 3)."""

    indices: tuple[int, ...]
    clips: tuple[list[Clip], ...]
    looks: Tensor


@dataclass(frozen=True)
class Looker:
    """How clips of one split are looked at, by which encoders. batch: clips a forward."""

    reader: ClipReader
    data: DataConfig
    encoders: dict[str, Encoder]
    segments: int = 1
    views: int = 1
    batch: int = 16

    def batches(
        self, indices: Sequence[int], unreadable: list[str], on_clip: Callable[[], None] = lambda: None
    ) -> Iterator[Looked]:
        """The clips in order, `batch` at a time; those that cannot be read are added to `unreadable`.

        Raises: DataError when more than one clip in ten cannot be read.
        """
        found = read_ahead(self.reader, self.data, indices, self.segments, on_clip)
        kept: list[tuple[int, list[Clip], Tensor]] = []
        for index, clips in zip(indices, found, strict=True):
            if isinstance(clips, DataError):
                unreadable.append(str(clips))
                if len(unreadable) * UNREADABLE_ONE_IN > len(indices):
                    raise DataError(
                        f"{len(unreadable)} of {len(indices)} clips are unreadable, the last: {clips}"
                    ) from clips
                continue
            kept.append((index, clips, looks(clips, self.data.size, self.views)))
            if len(kept) == self.batch:
                yield _looked(kept)
                kept = []
        if kept:
            yield _looked(kept)

    @torch.inference_mode()
    def tokens(self, looks_BVSTHWC: Tensor) -> dict[str, Tensor]:
        """Every encoder's tokens (B, V, S, N, D), `batch` segments a forward, on their device."""
        shape = looks_BVSTHWC.shape[:3]
        flat = looks_BVSTHWC.flatten(0, 2)
        found: dict[str, list[Tensor]] = {name: [] for name in self.encoders}
        device = next(next(iter(self.encoders.values())).parameters()).device
        for start in range(0, len(flat), self.batch):
            x = normalise(flat[start : start + self.batch].to(device))
            for name, encoder in self.encoders.items():
                found[name].append(encoder(x))
        return {name: torch.cat(parts).unflatten(0, shape) for name, parts in found.items()}


def _looked(kept: list[tuple[int, list[Clip], Tensor]]) -> Looked:
    indices, clips, seen = zip(*kept, strict=True)
    return Looked(indices, clips, torch.stack(seen))


class TokenSource:
    """The tokens of a split's clips, by the row in which `keep` was given them, segments side by side.

    folder: for the files, which nobody else needs; None keeps nothing.
    """

    def __init__(self, looker: Looker, folder: Path | None, kept_bytes: int = KEPT_BYTES) -> None:
        self._looker, self._folder, self._kept_bytes = looker, folder, kept_bytes
        self._files: dict[str, NDArray[np.float16]] = {}
        self._num_rows = 0

    @property
    def is_kept(self) -> bool:
        return bool(self._files)

    def keep(self, tokens: dict[str, Tensor], num_clips: int) -> None:
        """The next rows, (B, V, S, N, D) by encoder. num_clips: how many there will be at most."""
        if self._num_rows == 0 and self._folder is not None:
            shapes = {
                name: (num_clips, x.shape[1], x.shape[2] * x.shape[3], x.shape[4])
                for name, x in tokens.items()
            }
            needed = sum(2 * math.prod(shape) for shape in shapes.values())
            self._folder.mkdir(parents=True, exist_ok=True)
            if needed <= min(self._kept_bytes, shutil.disk_usage(self._folder).free // 2):
                self._files = {
                    name: np.memmap(self._folder / f"{place}.f16", np.float16, "w+", shape=shape)
                    for place, (name, shape) in enumerate(shapes.items())
                }
        count = len(next(iter(tokens.values())))
        for name, file in self._files.items():
            rows = tokens[name].flatten(2, 3).to(torch.float16).cpu().numpy()
            file[self._num_rows : self._num_rows + count] = rows
        self._num_rows += count

    def take(self, groups: Sequence[Sequence[int]], indices: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Each group of rows, as float16 (B, V, S·N, D) by encoder. indices: the clip of each row.

        Raises: DataError when a clip cannot be read any more.
        """
        if self._files:
            for rows in groups:
                yield {name: torch.from_numpy(file[list(rows)]) for name, file in self._files.items()}
            return
        every = [indices[row] for rows in groups for row in rows]
        found = read_ahead(self._looker.reader, self._looker.data, every, self._looker.segments)
        for rows in groups:
            seen = []
            for _ in rows:
                clips = next(found)
                if isinstance(clips, DataError):
                    raise clips
                seen.append(looks(clips, self._looker.data.size, self._looker.views))
            tokens = self._looker.tokens(torch.stack(seen))
            yield {name: x.flatten(2, 3).to(torch.float16).cpu() for name, x in tokens.items()}
