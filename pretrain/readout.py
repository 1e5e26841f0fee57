"""Reading answers out of frozen features, in closed form: ridge regression and nearest neighbours.

Shapes: n and m rows (one a tubelet), D features, S targets, C clips, t tubelets a clip, P places a tubelet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHAS = tuple(10.0**power for power in range(-6, 4))
HELD_OUT = 5  # every so manieth train clip chooses penalties and sharpness
BUMP, BUMP_ALPHA = 0.12, 1e-3  # size of the bump around an object, as a share of the frame; its ridge penalty
SHARPNESS = (5.0, 10.0, 20.0, 40.0)
STATE_GROUPS = {"x": "position", "y": "position", "vx": "velocity", "vy": "velocity"}
# Where the background stands says nothing without a map of it; how fast it moves does.
DRIFT_OF = {"bx": "background drift", "by": "background drift"}

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
        scale_D = np.where(std_D > 1e-6 * (1 + np.abs(mean_D)), std_D, np.inf)
        values, vectors = np.linalg.eigh(covariance / scale_D[:, None] / scale_D)
        projected = vectors.T @ ((xy - np.outer(mean_D, mean_S)) / scale_D[:, None])
        fits = []
        for alpha in alphas:
            weights = (vectors @ (projected / (np.maximum(values, 0)[:, None] + alpha))) / scale_D[:, None]
            fits.append((weights, mean_S - mean_D @ weights))
        return fits


def fit_ridge(x_nD: Floats, y_nS: Floats, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Ridge regression for each penalty: (weights (D, S), bias (S,))."""
    return Moments().add(x_nD, y_nS).ridge(alphas)


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


def places(rows: int, columns: int) -> Floats:
    """x and y of the centres of a grid's places, as shares of the frame: (P, 2), row by row."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def votes(train: Halves, where: Floats, others: Halves, places_P2: Floats) -> tuple[Floats, Floats]:
    """Where each place's feature says the object is: weights over the places, (C, t, P), of both sets.

    train, others: (C, t, P, D). where: (C, t, 2), the object's x and y in the train set. A ridge regression
    says from one place's feature how near the object is; a softmax over the places makes it a vote, as sharp
    as finds the object best on every fifth clip, held out.
    """
    held = np.arange(len(train)) % HELD_OUT == 0
    weights, bias = _nearness(train[~held], where[~held], places_P2)
    trial = _said(train[held], weights, bias)
    errors = [((_soft(trial, s) @ places_P2 - where[held]) ** 2).mean() for s in SHARPNESS]
    sharpness = SHARPNESS[int(np.argmin(errors))]
    weights, bias = _nearness(train, where, places_P2)
    return _soft(_said(train, weights, bias), sharpness), _soft(_said(others, weights, bias), sharpness)


def _nearness(tokens: Halves, where: Floats, places_P2: Floats) -> tuple[Floats, Floats]:
    """Weights (D, 1) and bias from a place's feature to a bump around the object."""
    moments = Moments()
    for clip, xy in zip(tokens, where, strict=True):
        distance2 = ((places_P2 - xy[:, None]) ** 2).sum(-1)
        moments.add(clip.reshape(-1, clip.shape[-1]), np.exp(-distance2 / (2 * BUMP**2)).reshape(-1, 1))
    return moments.ridge([BUMP_ALPHA])[0]


def _said(tokens: Halves, weights: Floats, bias: Floats) -> Floats:
    return np.stack([(clip.astype(np.float64) @ weights + bias)[..., 0] for clip in tokens])


def _soft(said: Floats, sharpness: float) -> Floats:
    raised = np.exp(sharpness * (said - said.max(-1, keepdims=True)))
    return raised / raised.sum(-1, keepdims=True)


def pooled(tokens: Halves, weights: Floats | None, places_P2: Floats) -> Floats:
    """One row of features for each tubelet: mean and spread over the places, and, given votes (C, t, P), the
    feature where the object is and its place. (C, t, 2D) or (C, t, 3D + 2)."""
    rows = []
    for number, clip in enumerate(tokens):
        x_tPD = clip.astype(np.float64)
        parts = [x_tPD.mean(1), x_tPD.std(1)]
        if weights is not None:
            parts += [np.einsum("tp,tpd->td", weights[number], x_tPD), weights[number] @ places_P2]
        rows.append(np.concatenate(parts, -1))
    return np.stack(rows)


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


def score_states(
    features: dict[str, tuple[Halves, Halves]], targets: list[Target], places_of: dict[str, Floats]
) -> list[dict[str, Any]]:
    """A row for each encoder's (train, eval) features (C, t, P, D), and the answer that ignores the clip."""
    rows = []
    y_nS = np.concatenate([_flat(t.train) for t in targets], 1)
    position = next((t for t in targets if t.name == "position" and t.train.shape[-1] == 2), None)
    for encoder, (train, evaluation) in features.items():
        at = places_of[encoder]
        near: tuple[Floats | None, Floats | None] = (None, None)
        if position is not None:
            near = votes(train, position.train, evaluation, at)
        x_nD, x_mD = _flat(pooled(train, near[0], at)), _flat(pooled(evaluation, near[1], at))
        clips_n = np.repeat(np.arange(len(train)), train.shape[1])
        guess = ridge_predictions(x_nD, y_nS, clips_n, x_mD)
        edges = np.cumsum([t.train.shape[-1] for t in targets])[:-1]
        parts = np.split(guess, edges, axis=1)
        rows.append(row(encoder, {t.name: t.score(part) for t, part in zip(targets, parts, strict=True)}))
    constant = {
        t.name: t.score(np.tile(_flat(t.train).mean(0), (len(_flat(t.evaluation)), 1))) for t in targets
    }
    rows.append(row("mean of the train clips", constant))
    return rows


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])


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
