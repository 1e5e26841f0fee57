"""Where the object is, read from the features of a frame: the same reading for true and for foreseen ones.

Two ridge regressions in closed form: one says of each place's feature how near the object is, and a softmax
makes it a vote over places (pretrain/probe/states.py); the other goes from the pooled features to x and y.

Shapes: C clips, t frames a clip, P places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pretrain.probe.clips import place_features, places_grid
from pretrain.probe.ridge import ALPHAS, HELD_OUT, Floats, Halves, fit_ridge
from pretrain.probe.states import Votes, fit_votes, places, pooled


@dataclass(frozen=True)
class PositionDecoder:
    """From features to x and y, shares of the frame."""

    grid: tuple[int, int]
    votes: Votes
    weights: Floats
    bias: Floats

    def __call__(self, features_CtPD: Tensor) -> Floats:
        """(C, t, 2)."""
        return self.read(at_places(features_CtPD, self.grid))

    def read(self, halves_CtPD: Halves) -> Floats:
        rows = pooled(halves_CtPD, self.votes(halves_CtPD), self.votes.places_P2)
        said: Floats = rows @ self.weights + self.bias
        return said


def at_places(features_CtPD: Tensor, grid: tuple[int, int]) -> Halves:
    """Features averaged to a handful of places: float16 (C, t, P, D)."""
    count, moments = features_CtPD.shape[:2]
    small = place_features(features_CtPD.flatten(0, 1), (1, *grid))
    halves: Halves = small.unflatten(0, (count, moments)).squeeze(2).cpu().numpy()
    return halves


def fit_decoder(
    features: Sequence[Halves], where: Sequence[Floats], grid: tuple[int, int]
) -> PositionDecoder:
    """Fitted on true features (c, t, P, D) of `at_places` and positions (c, t, 2), batch by batch.

    grid: rows and columns of a frame's patches. The penalty is the best on every fifth clip, held out.
    """
    x_CtPD, y_Ct2 = np.concatenate(features), np.concatenate(where)
    at_P2 = places(*places_grid((1, *grid)))
    votes = fit_votes(x_CtPD, y_Ct2, at_P2)
    rows, y = pooled(x_CtPD, votes(x_CtPD), at_P2), y_Ct2
    held = np.arange(len(rows)) % HELD_OUT == 0
    trials = fit_ridge(_flat(rows[~held]), _flat(y[~held]), ALPHAS)
    errors = [((_flat(rows[held]) @ w + b - _flat(y[held])) ** 2).mean() for w, b in trials]
    weights, bias = fit_ridge(_flat(rows), _flat(y), ALPHAS)[int(np.argmin(errors))]
    return PositionDecoder(grid, votes, weights, bias)


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])
