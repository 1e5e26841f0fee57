"""The fixed clips that are probed while training: which, and each rank's part of them in memory.

Shapes: T frames, S the side that the model sees, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.format import DatasetInfo
from data_pipeline.storage import Moved
from pretrain.config import RunConfig
from pretrain.data.reader import Clip, ClipReader
from pretrain.probe.clips import MAX_SIDE, MIN_CLIPS, choose, open_splits, tubelet_states
from pretrain.probe.kinds import Kind, allowed
from pretrain.probe.scores import Truth
from pretrain.probe.views import looks, read_ahead

GATHERED_BYTES = 256 << 20  # of all clips' features together: of wide encoders there are fewer places
HELD_BYTES = 1 << 30  # of clips a rank keeps decoded; the others are read again for each probing


@dataclass(frozen=True)
class Item:
    """A clip: split, and number in it."""

    split: str
    index: int


@dataclass(frozen=True)
class Fixed:
    """Which clips are probed, in the same order on every rank and at every world size, and for what."""

    root: str
    readers: dict[str, ClipReader]
    items: tuple[Item, ...]
    kinds: tuple[Kind, ...]

    @property
    def info(self) -> DatasetInfo:
        return next(iter(self.readers.values())).info

    def side(self, config: RunConfig) -> int:
        """Tokens are averaged to at most so many rows and columns: states need places, others one mean."""
        if "states" not in self.kinds:
            return 1
        width = config.model.encoder.shape[0]
        room = GATHERED_BYTES / (2 * len(self.items) * config.grid[0] * width)
        return max(1, min(config.probe.places or MAX_SIDE, math.isqrt(int(room))))


def fixed_clips(config: RunConfig) -> Fixed:
    """Clips of the probe's data set, probe.online_clips of each split at most.

    Labels and states need both splits, of others the clips of one do. Raises: DataError with too few.
    """
    root = config.probe.data or config.data.sources[0].shards
    readers = open_splits(root)
    limits = {"train": config.probe.train_clips, "eval": config.probe.eval_clips}
    chosen = {
        split: choose(reader, min(limits[split], config.probe.online_clips), config.seed, split)
        for split, reader in readers.items()
    }
    kinds = tuple(kind for kind in allowed(None, readers, chosen, root) if kind != "attentive")
    train, evaluation = (len(chosen.get(split, [])) for split in ("train", "eval"))
    if kinds != ("retrieval",) and min(train, evaluation) < MIN_CLIPS:
        raise DataError(
            f"{root} has {train} train and {evaluation} eval clips, and {MIN_CLIPS} of each are needed; "
            f"name another data set with probe.data=..., or set probe.every=null"
        )
    items = tuple(Item(split, index) for split in chosen for index in chosen[split])
    return Fixed(root, readers, items, kinds)


class HeldClips:
    """This rank's part of the fixed clips, as uint8 (T, S, S, C) each, as far as they fit."""

    def __init__(
        self, fixed: Fixed, items: Sequence[Item], config: RunConfig, held_bytes: int = HELD_BYTES
    ) -> None:
        self._fixed, self._items, self._config = fixed, tuple(items), config
        self._held_bytes = held_bytes
        self._views: list[Tensor | None] = []
        self.truths: list[Truth | None] = []  # None of a clip that cannot be read
        self.unreadable: list[str] = []

    def read(self, moved: Moved) -> None:
        """Decode all of them once. Raises: StorageError, RefusedError."""
        room = self._held_bytes
        for clip in self._decoded(self._items):
            moved(1)
            if isinstance(clip, DataError):
                self.unreadable.append(str(clip))
                self._views.append(None)
                self.truths.append(None)
                continue
            view = self._view(clip)
            room -= view.numel()
            self._views.append(view if room >= 0 else None)
            states = None
            if "states" in self._fixed.kinds and clip.state is not None:
                states = tubelet_states(clip, self._fixed.info.state_names, self._config.grid[0])
            self.truths.append(Truth(clip.meta.video_id, clip.meta.label, states))

    def batches(self, size: int, count: int) -> Iterator[tuple[list[int], Tensor | None]]:
        """`count` batches of up to `size` clips: their rows, and (B, T, S, S, C); None of a batch of none.

        What is not held is decoded again, ahead by threads; what of it cannot be read now is left out.
        """
        again = [
            row for row, truth in enumerate(self.truths) if truth is not None and self._views[row] is None
        ]
        decoded = self._decoded([self._items[row] for row in again])
        for number in range(count):
            rows, views = [], []
            for row in range(number * size, min((number + 1) * size, len(self.truths))):
                view = self._views[row]
                if view is None and self.truths[row] is not None:
                    view = self._next(decoded)
                if view is not None:
                    rows.append(row)
                    views.append(view)
            yield rows, torch.stack(views) if views else None

    def _next(self, decoded: Iterator[Clip | DataError]) -> Tensor | None:
        try:
            clip = next(decoded, None)
        except DataError:  # the store is away: this probing does without
            return None
        return self._view(clip) if isinstance(clip, Clip) else None

    def _view(self, clip: Clip) -> Tensor:
        return looks([clip], self._config.data.size, 1)[0, 0]

    def _decoded(self, items: Sequence[Item]) -> Iterator[Clip | DataError]:
        for split, reader in self._fixed.readers.items():
            own = [item.index for item in items if item.split == split]
            for found in read_ahead(reader, self._config.data, own):
                yield found if isinstance(found, DataError) else found[0]
