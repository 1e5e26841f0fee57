"""What every objective takes and gives: a batch, targets, one loss.

Shapes: B clips, C channels, T frames, H×W pixels, N tokens a clip, M kept tokens, P hidden tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ModelConfig, TargetConfig
from pretrain.flops import Again
from pretrain.masks import Masks, Tokens
from pretrain.model.readout import Readout
from pretrain.model.vit import Encoder, Transformer
from pretrain.objective.guess import Guess


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, on its device. Its tensors are valid until the next one is taken.

    step: the optimizer step it belongs to. positions: in the stream of samples. keys: sample ids.
    clips: float32 (B, C, T, H, W), normalised. bad: (id, reason) of samples that others stand in for.
    states (B, T, S), actions (B, T, A): float32, or None where a clip has none. state_names: of the columns,
    where the data sets agree on them.
    """

    step: int
    positions: tuple[int, ...]
    keys: tuple[str, ...]
    clips: Tensor
    masks: Masks
    states: Tensor | None = None
    actions: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()
    state_names: tuple[str, ...] = ()


class Seen(NamedTuple):
    """Features for health to look at, detached: (M, D), and the token of its clip each stands at (M,)."""

    features_MD: Tensor
    token_M: Tensor


class Output(NamedTuple):
    """The loss to go backward from, and what is logged and looked at (detached).

    parts: scalars by name, such as the loss of each mask kind. seen: features by name: `context`,
    `prediction`, and where there are targets `target`. guess: predictions beside what they should have been.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    seen: dict[str, Seen]
    guess: Guess


class Objective(nn.Module):
    """A trainable module that holds the context encoder, if it trains one, and whatever predicts from it."""

    encoder: Encoder | None

    def __init__(self, model: ModelConfig, target: TargetConfig) -> None:
        super().__init__()
        self._init_std = model.init_std
        self._target = target

    def initialise(self, seed: int) -> None:
        """Initial weights as published (but for their size, if configured), equal on every rank."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.children():
            assert isinstance(module, Transformer | Readout)
            module.initialise(generator, self._init_std)

    def recompute_blocks(self, encoder: Again, predictor: Again) -> None:
        """Keep no activations inside some blocks; compute them again in the backward pass."""
        for name, module in self.stacks().items():
            module.recompute(*(encoder if name == "encoder" else predictor))

    def stacks(self) -> dict[str, Transformer]:
        """What has blocks, by name: the encoder and, but for a mere readout, the predictor."""
        return {name: module for name, module in self.named_children() if isinstance(module, Transformer)}

    @torch.no_grad()
    def targets(self, target_encoder: Encoder, batch: Batch) -> Tensor | None:
        """What is to be guessed, by a target encoder of its own, float32, without gradient.

        None where the objective's truth is not a feature.
        """
        return self.read(target_encoder, batch)

    def read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """What is to be guessed (B, N, D): an encoder's features of a batch, normed, float32."""
        raise NotImplementedError

    def wanted(self, batch: Batch, targets: Tensor | None) -> Tensor:
        """The targets given, or, with target.kind online, the context encoder's own.

        Without a stop-gradient, targets that are given keep their values and have the gradient of the
        encoder's own: what the loss pulls is then what the average follows.
        """
        if targets is not None and self._target.stop_gradient:
            return targets
        assert self.encoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._target.stop_gradient):
            own = self.read(self.encoder, batch)
        return own if targets is None else targets + (own - own.detach())

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        raise NotImplementedError


def normed(features: Tensor, levels: int = 1) -> Tensor:
    """float32 features, each level's layer-normed without affine terms."""
    parts = features.float().unflatten(-1, (levels, -1))
    return F.layer_norm(parts, parts.shape[-1:]).flatten(-2)


def mean_over_clips(error: Tensor, tokens: Tokens, masks: Masks) -> tuple[Tensor, Tensor]:
    """Of an error for each of some tokens: the mean over clips of each clip's mean; each sequence's (S,).

    error (P,): of the masks' kept tokens, or of the hidden ones. Each clip counts the same however many
    tokens its mask hides, so a loss is the same for any number of ranks.
    """
    error_S = error.new_zeros(masks.num_sequences).index_add(0, tokens.sequence, error)
    error_S = error_S / tokens.lengths_S.clamp(min=1)
    return (error_S * masks.shares_S).sum(), error_S


def l1_of(prediction_PO: Tensor, wanted_PO: Tensor, masks: Masks) -> Tensor:
    """Mean over clips of the L1 of predictions of the hidden tokens."""
    error_P = (prediction_PO.float() - wanted_PO).abs().mean(-1)
    return mean_over_clips(error_P, masks.hidden, masks)[0]


def by_kind(error_S: Tensor, masks: Masks) -> dict[str, Tensor]:
    """The mean error of each mask kind, as `mask0`, `mask1`; nan of a kind that no clip of the batch has."""
    return {f"mask{kind}": error_S.detach()[own].mean() for kind, own in enumerate(masks.kind_spans)}
