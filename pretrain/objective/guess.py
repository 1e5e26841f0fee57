"""What was guessed, beside what one would guess who has learned nothing: for health to compare.

Shapes: P hidden tokens, M kept tokens, O width of a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.masks import Masks
from pretrain.model.positions import Grid


@dataclass(frozen=True)
class Guess:
    """Predictions and their targets, token by token, float32, without gradient.

    source_P: clip * N + token of each; token_P: the token alone. loss_of: what the objective would say of
    other predictions (P, O), as a scalar, regularisers and losses on seen tokens left out. copied: the
    trivial answer that repeats the target of the nearest token that was seen; of a future, the last frame.
    """

    prediction_PO: Tensor
    wanted_PO: Tensor
    source_P: Tensor
    token_P: Tensor
    loss_of: Callable[[Tensor], Tensor]
    copied: Callable[[], Tensor]

    @torch.no_grad()
    def losses(self) -> dict[str, Tensor]:
        """The loss of the prediction and of two trivial answers: the mean token, and the copy."""
        mean = self.wanted_PO.mean(0, keepdim=True).expand_as(self.wanted_PO)
        answers = {"prediction": self.prediction_PO, "mean_token": mean, "copy": self.copied()}
        return {name: self.loss_of(answer) for name, answer in answers.items()}


def placed(places: Tensor, num_tokens: int, grid: Grid) -> Tensor:
    """Time, row and column of s * N + token, in tokens: (n, 3) float32."""
    token, (_, rows, columns) = places % num_tokens, grid
    coordinates = (token // (rows * columns), token // columns % rows, token % columns)
    return torch.stack(coordinates, dim=-1).float()


def nearest_kept(masks: Masks, grid: Grid) -> Tensor:
    """For each hidden token which kept one of its sequence is nearest: (P,), numbers into kept_M.

    Nearest in the 3D grid, the earlier of equals: of a hidden future the last moment that is seen.
    """
    kept = masks.kept_M.split(masks.kept_lengths)
    hidden = masks.hidden_P.split(masks.hidden_lengths)
    found, before = [], 0
    for a, b in zip(kept, hidden, strict=True):
        apart = torch.cdist(placed(b, masks.num_tokens, grid), placed(a, masks.num_tokens, grid))
        found.append(before + apart.argmin(1))
        before += len(a)
    return torch.cat(found)
