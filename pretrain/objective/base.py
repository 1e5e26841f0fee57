"""What every objective takes and gives: a batch, targets without gradient, one loss.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip, M kept tokens, P hidden tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from pretrain.masks import Masks
from pretrain.model.vit import Encoder


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, on its device. Its tensors are valid until the next one is taken.

    step: the optimizer step it belongs to. positions: in the stream of samples. keys: sample ids.
    clips: float32 (B, C, T, H, W), normalised. bad: (id, reason) of samples that others stand in for.
    states (B, T, S), actions (B, T, A): float32, or None where a clip has none.
    """

    step: int
    positions: tuple[int, ...]
    keys: tuple[str, ...]
    clips: Tensor
    masks: Masks
    states: Tensor | None = None
    actions: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()


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
