"""Reading answers out of frozen features, in closed form: ridge regression and nearest neighbours.

Shapes: n and m rows (one a tubelet), D features, S targets, C clips, t tubelets a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHAS = tuple(10.0**power for power in range(-6, 4))
HELD_OUT_SHARE = 0.2  # of the train clips, to choose the ridge penalty on
STATE_GROUPS = {"x": "position", "y": "position", "vx": "velocity", "vy": "velocity"}
# Where the background stands says nothing without a map of it; how fast it moves does.
DRIFT_OF = {"bx": "background drift", "by": "background drift"}

Floats = NDArray[np.float64]


def fit_ridge(x_nD: Floats, y_nS: Floats, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Ridge regression for each penalty: (weights (D, S), bias (S,)) in the units given.

    Features are standardised first, so that a penalty means the same for every encoder: it is `alpha`
    times the number of rows, added to the diagonal of the features' Gram matrix.
    """
    mean_D, std_D = x_nD.mean(0), x_nD.std(0)
    scale_D = np.where(std_D > 1e-8 * (1 + np.abs(mean_D)), std_D, np.inf)
    z_nD = (x_nD - mean_D) / scale_D
    y_mean = y_nS.mean(0)
    values, vectors = np.linalg.eigh(z_nD.T @ z_nD / len(z_nD))
    projected = vectors.T @ (z_nD.T @ (y_nS - y_mean) / len(z_nD))
    fits = []
    for alpha in alphas:
        weights = (vectors @ (projected / (np.maximum(values, 0)[:, None] + alpha))) / scale_D[:, None]
        fits.append((weights, y_mean - mean_D @ weights))
    return fits


def r2(truth_nS: Floats, guess_nS: Floats) -> Floats:
    """Share of each target's variance that is explained, about its own mean: 1 exact, 0 no better than it."""
    residual = ((truth_nS - guess_nS) ** 2).sum(0)
    spread = ((truth_nS - truth_nS.mean(0)) ** 2).sum(0)
    return np.where(spread > 0, 1 - residual / np.where(spread > 0, spread, 1), np.nan)


def ridge_predictions(x_nD: Floats, y_nS: Floats, clips_n: NDArray[np.int64], x_mD: Floats) -> Floats:
    """Fit on rows n, predict rows m; each target's penalty is the best on every fifth clip, held out."""
    held = clips_n % round(1 / HELD_OUT_SHARE) == 0
    trials = [x_nD[held] @ w + b for w, b in fit_ridge(x_nD[~held], y_nS[~held], ALPHAS)]
    errors = np.stack([((y_nS[held] - guess) ** 2).mean(0) for guess in trials])
    best_S = errors.argmin(0)
    guesses = np.stack([x_mD @ w + b for w, b in fit_ridge(x_nD, y_nS, ALPHAS)])
    return guesses[best_S, :, np.arange(y_nS.shape[1])].T


@dataclass(frozen=True)
class Target:
    """One thing to read out: values of each clip's tubelets (C, t, S); classes are one-hot columns."""

    name: str
    is_class: bool
    train: Floats
    evaluation: Floats

    @property
    def unit(self) -> str:
        return "share right" if self.is_class else "R²"

    def score(self, guess_nS: Floats) -> float:
        truth = self.evaluation.reshape(len(guess_nS), -1)
        if self.is_class:
            return float((truth.argmax(1) == guess_nS.argmax(1)).mean())
        scores = r2(truth, guess_nS)
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan


def make_targets(names: Sequence[str], train: Floats, evaluation: Floats) -> list[Target]:
    """Group states by name; a state that never changes in a clip and has few whole values is a class.

    train, evaluation: (C, t, S) in the order of `names`.
    """
    targets: list[Target] = []
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(STATE_GROUPS.get(name) or DRIFT_OF.get(name) or name, []).append(column)
    for group, columns in groups.items():
        both = train[..., columns], evaluation[..., columns]
        classes = np.unique(both[0])
        if len(columns) == 1 and 1 < len(classes) <= 16 and np.array_equal(classes, classes.round()):
            hot = [(side == classes).astype(np.float64) for side in both]
            targets.append(Target(group, True, hot[0], hot[1]))
        else:
            targets.append(Target(group, False, both[0], both[1]))
    return targets


def score_states(features: dict[str, tuple[Floats, Floats]], targets: list[Target]) -> list[dict[str, Any]]:
    """A row for each encoder's (train, eval) features (C, t, D), and the answer that ignores the clip."""
    rows = []
    for encoder, (train, evaluation) in features.items():
        num_clips, tubelets, width = train.shape
        clips_n = np.repeat(np.arange(num_clips), tubelets)
        y_nS = np.concatenate([t.train.reshape(len(clips_n), -1) for t in targets], 1)
        guess = ridge_predictions(train.reshape(-1, width), y_nS, clips_n, evaluation.reshape(-1, width))
        edges = np.cumsum([t.train.shape[-1] for t in targets])[:-1]
        parts = np.split(guess, edges, axis=1)
        rows.append(row(encoder, {t.name: t.score(part) for t, part in zip(targets, parts, strict=True)}))
    constant = {}
    for target in targets:
        count = math.prod(target.evaluation.shape[:2])
        constant[target.name] = target.score(
            np.tile(target.train.reshape(-1, target.train.shape[-1]).mean(0), (count, 1))
        )
    rows.append(row("mean of the train clips", constant))
    return rows


def retrieval(features_CD: Floats, videos: Sequence[str]) -> dict[str, float]:
    """Is the nearest other clip (cosine, centred) of the same video? Top-1 and mean average precision.

    Clips that are alone in their video ask nothing, but stand among the answers.
    """
    order_CC, relevant_CC = _ranking(features_CD, videos)
    top1, precision = [], []
    for order, relevant in zip(order_CC, relevant_CC, strict=True):
        hits = relevant[order]
        if hits.any():
            top1.append(float(hits[0]))
            places = np.flatnonzero(hits) + 1
            precision.append(float((np.arange(1, len(places) + 1) / places).mean()))
    return {"top-1": float(np.mean(top1)), "mean average precision": float(np.mean(precision))}


def retrieval_chance(videos: Sequence[str]) -> dict[str, float]:
    """What a ranking in random order scores on average, exactly."""
    others = len(videos) - 1
    places = np.arange(1, others + 1)
    top1, precision = [], []
    for video in videos:
        same = sum(other == video for other in videos) - 1
        if same:
            top1.append(same / others)
            rest = (same - 1) / max(1, others - 1)
            precision.append(float(((1 + (places - 1) * rest) / places).mean()))
    return {"top-1": float(np.mean(top1)), "mean average precision": float(np.mean(precision))}


def nearest(features_CD: Floats, videos: Sequence[str], count: int) -> NDArray[np.int64]:
    """The `count` nearest other clips of each clip, nearest first (C, count)."""
    return _ranking(features_CD, videos)[0][:, :count]


def _ranking(features_CD: Floats, videos: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The other clips in order of cosine (C, C - 1), ties by number; and which clips share a video (C, C)."""
    centred = features_CD - features_CD.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    names = np.array(videos)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :-1], names[:, None] == names[None, :]


def row(encoder: str, scores: dict[str, float]) -> dict[str, Any]:
    plain = {name: round(score, 4) if math.isfinite(score) else None for name, score in scores.items()}
    return {"encoder": encoder, "scores": plain}
