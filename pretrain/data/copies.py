"""Batches from slots to a GPU on a stream of their own, beside what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.data.augment import normalise
from pretrain.data.load import Loaded
from pretrain.masks import Masks
from pretrain.parts import COPY, marked
from pretrain.pinned import sent


@dataclass(frozen=True)
class Ahead:
    """A batch on its way: there once `event` has passed. tables: its states and actions, or None."""

    found: Loaded
    clips: Tensor
    masks: Masks
    tables: list[Tensor | None]
    event: torch.cuda.Event


def on_their_way(views_THWC: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Crops of pinned bytes on a device, on the stream at hand, without waiting: the bytes, not floats."""
    return [view.to(device, non_blocking=True) for view in views_THWC]


class Copies:
    """Copies begun in order; `settle` before slots are asked for again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream = torch.cuda.Stream(device)
        self._begun: deque[torch.cuda.Event] = deque()

    def settle(self) -> None:
        """Wait for all copies but the last: the slots of the others may be written again."""
        while len(self._begun) > 1:
            self._begun.popleft().synchronize()

    @marked(COPY)
    def begin(
        self,
        found: Loaded,
        views_THWC: Sequence[Tensor],
        mirrored: Sequence[bool],
        size: int,
        masks: Masks,
        tables: Sequence[Tensor | None],
    ) -> Ahead:
        """Copy crops, masks and tables; on the GPU resize, mirror and normalise: clips (B, C, T, S, S)."""
        event = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            views = on_their_way(views_THWC, self._device)
            clips = normalise(views, size, mirrored)
            masks = masks.to(self._device)
            there = [None if table is None else sent(table, self._device) for table in tables]
            event.record(self.stream)
        self._begun.append(event)
        return Ahead(found, clips, masks, there, event)

    def hand_over(self, ahead: Ahead) -> None:
        """What is computed from now on waits for the copy; and its memory waits for the computing."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ahead.event)
        for tensor in (ahead.clips, ahead.masks.laid_out, *ahead.tables):
            if tensor is not None:
                tensor.record_stream(current)
