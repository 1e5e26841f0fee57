"""Ridge regression in closed form, from sums over rows.

Shapes: n and m rows (one a tubelet), D features, S targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ALPHAS = tuple(10.0**power for power in range(-6, 4))
HELD_OUT = 5  # every so manieth train clip chooses penalties and sharpness

Floats = NDArray[np.float64]
Halves = NDArray[np.float16]


class Moments:
    """Sums over rows of features and targets; all that a ridge regression needs of them."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._sums: list[Floats] = []

    def add(self, x_nD: Floats, y_nS: Floats) -> Moments:
        x, y = x_nD.astype(np.float64), y_nS.astype(np.float64)
        sums = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.num_rows += len(x)
        return self

    def ridge(self, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
        """For each penalty: (weights (D, S), bias (S,)) in the units given.

        Features are standardised first, so that a penalty means the same for every encoder: it is `alpha`
        times the number of rows, added to the diagonal of the features' Gram matrix.
        """
        mean_D, mean_S, xx, xy = (total / self.num_rows for total in self._sums)
        covariance = xx - np.outer(mean_D, mean_D)
        std_D = np.sqrt(np.maximum(np.diag(covariance), 0))
        scale_D = _scale(mean_D, std_D)
        values, vectors = np.linalg.eigh(covariance / scale_D[:, None] / scale_D)
        projected = vectors.T @ ((xy - np.outer(mean_D, mean_S)) / scale_D[:, None])
        fits = []
        for alpha in alphas:
            weights = (vectors @ (projected / (np.maximum(values, 0)[:, None] + alpha))) / scale_D[:, None]
            fits.append((weights, mean_S - mean_D @ weights))
        return fits


def fit_ridge(x_nD: Floats, y_nS: Floats, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Ridge regression for each penalty: (weights (D, S), bias (S,)), as of `Moments`.

    With fewer rows than features it is solved among the rows, whose Gram matrix is the smaller one.
    """
    if len(x_nD) >= x_nD.shape[1]:
        return Moments().add(x_nD, y_nS).ridge(alphas)
    x, y = x_nD.astype(np.float64), y_nS.astype(np.float64)
    mean_D, mean_S = x.mean(0), y.mean(0)
    centred = x - mean_D
    std_D = np.sqrt((centred**2).mean(0))
    scale_D = _scale(mean_D, std_D)
    scaled = centred / scale_D
    values, vectors = np.linalg.eigh(scaled @ scaled.T / len(x))
    projected = vectors.T @ (y - mean_S) / len(x)
    fits = []
    for alpha in alphas:
        of_rows = vectors @ (projected / (np.maximum(values, 0)[:, None] + alpha))
        weights = scaled.T @ of_rows / scale_D[:, None]
        fits.append((weights, mean_S - mean_D @ weights))
    return fits


def _scale(mean_D: Floats, std_D: Floats) -> Floats:
    """What features are divided by; of one that does not vary, infinity: it has no part."""
    return np.where(std_D > 1e-6 * (1 + np.abs(mean_D)), std_D, np.inf)


def r2(truth_nS: Floats, guess_nS: Floats) -> Floats:
    """Share of each target's variance that is explained, about its own mean: 1 exact, 0 no better than it."""
    residual = ((truth_nS - guess_nS) ** 2).sum(0)
    spread = ((truth_nS - truth_nS.mean(0)) ** 2).sum(0)
    return np.where(spread > 0, 1 - residual / np.where(spread > 0, spread, 1), np.nan)


def ridge_predictions(x_nD: Floats, y_nS: Floats, clips_n: NDArray[np.int64], x_mD: Floats) -> Floats:
    """Fit on rows n, predict rows m; each target's penalty is the best on every fifth clip, held out."""
    held = clips_n % HELD_OUT == 0
    trials = [x_nD[held] @ w + b for w, b in fit_ridge(x_nD[~held], y_nS[~held], ALPHAS)]
    errors = np.stack([((y_nS[held] - guess) ** 2).mean(0) for guess in trials])
    best_S = errors.argmin(0)
    guesses = np.stack([x_mD @ w + b for w, b in fit_ridge(x_nD, y_nS, ALPHAS)])
    return guesses[best_S, :, np.arange(y_nS.shape[1])].T
