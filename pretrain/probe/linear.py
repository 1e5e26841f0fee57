"""A linear classifier of frozen features: logistic regression, convex, so that no number depends on luck.

Shapes: C clips, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.probe.labels import Numbers, Singles
from pretrain.probe.ridge import Floats

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # falling: each fit begins where the one before ended
MAX_ITERATIONS = 300


@dataclass(frozen=True)
class Linear:
    """Scores are features @ weights + bias, in the features' own units. weights (D, K), bias (K,)."""

    weights: Floats
    bias: Floats

    def scores(self, x_CD: Singles) -> Floats:
        found: Floats = x_CD.astype(np.float64) @ self.weights + self.bias
        return found


def fit_linear(
    x_CD: Singles, y_C: Numbers, num_classes: int, penalties: Sequence[float] = PENALTIES
) -> list[Linear]:
    """For each penalty the weights W that minimise mean cross-entropy + penalty / 2 · ‖W‖².

    Features are standardised first, so that a penalty means the same for every encoder; the bias is free.
    The features are gone over together for all classes, by L-BFGS in float64; the gradient is written out,
    since this also runs beside a training process, whose autograd it leaves alone.
    """
    x = torch.from_numpy(np.ascontiguousarray(x_CD)).double()
    mean_D = x.mean(0)
    std_D = x.std(0, unbiased=False)
    scale_D = torch.where(std_D > 1e-6 * (1 + mean_D.abs()), std_D, torch.inf)
    x = (x - mean_D) / scale_D
    truth = torch.nn.functional.one_hot(torch.from_numpy(y_C), num_classes).double()
    both = torch.zeros(x.shape[1] + 1, num_classes, dtype=torch.float64)  # weights, and the bias last
    fits = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [both], max_iter=MAX_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
        )

        def closure(penalty: float = penalty) -> float:
            weights, bias = both[:-1], both[-1]
            scores = x @ weights + bias
            log_shares = scores.log_softmax(1)
            error = (log_shares.exp() - truth) / len(x)
            both.grad = torch.cat([x.T @ error + penalty * weights, error.sum(0)[None]])
            loss = -(truth * log_shares).sum() / len(x) + penalty / 2 * weights.square().sum()
            return float(loss)

        with torch.no_grad():
            optimizer.step(closure)
        weights = both[:-1] / scale_D[:, None]
        fits.append(Linear(weights.numpy().copy(), (both[-1] - mean_D @ weights).numpy().copy()))
    return fits
