"""What every objective takes and gives: a batch, targets without gradient, one loss.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip, M kept tokens, P hidden tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pretrain.masks import Masks
from pretrain.model.vit import Encoder


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    clips: uint8 (B, T, H, W, C) as collated, float (B, C, T, H, W) normalised once on the device.
    step: the optimizer step it belongs to. keys: sample ids. bad: (id, reason) of replaced samples.
    states (B, T, S), actions (B, T, A): float32, or None where the data set has none.
    """

    step: int
    keys: tuple[str, ...]
    clips: Tensor
    masks: Masks
    states: Tensor | None = None
    actions: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()

    def with_clips(self, clips: Tensor, device: torch.device) -> Batch:
        return replace(self, clips=clips, masks=self.masks.to(device))


class Output(NamedTuple):
    """The loss to go backward from, and what health looks at (detached).

    kind_losses (K,): the loss of each mask kind. context_MD with its places context_M, prediction_PD with
    hidden_P: features and the token of the clip they stand at.
    """

    loss: Tensor
    kind_losses: Tensor
    context_MD: Tensor
    context_M: Tensor
    prediction_PD: Tensor
    hidden_P: Tensor


class Objective(Protocol):
    """A trainable module that holds the context encoder and whatever predicts from it."""

    encoder: Encoder

    def targets(self, target_encoder: Encoder, batch: Batch) -> Tensor: ...

    def __call__(self, batch: Batch, targets: Tensor) -> Output: ...
