"""Batches from slots to a GPU on a stream of their own, beside what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.augment import normalise
from pretrain.masks import Masks


class Copies:
    """Copies begun in order; `settle` before slots are asked for again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._begun: deque[torch.cuda.Event] = deque()

    def settle(self) -> None:
        """Wait for all copies but the last: the slots of the others may be written again."""
        while len(self._begun) > 1:
            self._begun.popleft().synchronize()

    def begin(
        self, views_THWC: Sequence[Tensor], mirrored: Sequence[bool], size: int, masks: Masks
    ) -> tuple[Tensor, Masks, torch.cuda.Event]:
        """Normalised clips (B, C, T, S, S) and masks on the GPU, there once the event has passed."""
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            views = [view.to(self._device, non_blocking=True) for view in views_THWC]
            clips = normalise(views, size, mirrored)
            masks = masks.to(self._device)
            event.record(self._stream)
        self._begun.append(event)
        return clips, masks, event

    def hand_over(self, event: torch.cuda.Event, clips: Tensor, masks: Masks) -> None:
        """What is computed from now on waits for the copy; and its memory waits for the computing."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in (clips, masks.kept_M, masks.hidden_P):
            tensor.record_stream(current)
