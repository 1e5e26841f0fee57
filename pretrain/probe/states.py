"""True states, read from frozen features by ridge regression: one row a tubelet.

Shapes: n and m rows (one a tubelet), D features, S targets, C clips, t tubelets a clip, P places a tubelet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.probe.result import row
from pretrain.probe.ridge import HELD_OUT, Floats, Halves, Moments, r2, ridge_predictions

BUMP, BUMP_ALPHA = 0.12, 1e-3  # size of the bump around an object, as a share of the frame; its ridge penalty
SHARPNESS = (5.0, 10.0, 20.0, 40.0)
STATE_GROUPS = {
    "x": "position",
    "y": "position",
    "vx": "velocity",
    "vy": "velocity",
    "bvx": "background drift",
    "bvy": "background drift",
    **dict.fromkeys(("b0", "b1", "b2", "b3"), "background waves"),
    "wx": "walls",
    "wy": "walls",
}
# Waves over the whole picture: features pooled over places do not tell where they stand.
OF_ALL_PLACES = ("background waves",)
FEWER = 4  # rows and columns of places that those are read from, at most
# Where the background stands says nothing without a map of it; how fast it moves does.
DRIFT_OF = {"bx": "background drift", "by": "background drift"}


def places(rows: int, columns: int) -> Floats:
    """x and y of the centres of a grid's places, as shares of the frame: (P, 2), row by row."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


@dataclass(frozen=True)
class Votes:
    """Where features say that the object is: weights over the places, from how near each one says it is."""

    places_P2: Floats
    weights: Floats
    bias: Floats
    sharpness: float

    def __call__(self, features: Halves) -> Floats:
        """(C, t, P, D) to weights (C, t, P) that sum to 1."""
        return _soft(_said(features, self.weights, self.bias), self.sharpness)


def fit_votes(train: Halves, where: Floats, places_P2: Floats) -> Votes:
    """train: (C, t, P, D). where: (C, t, 2), the object's x and y.

    A ridge regression says from one place's feature how near the object is; a softmax over the places makes
    it a vote, as sharp as finds the object best on every fifth clip, held out.
    """
    held = np.arange(len(train)) % HELD_OUT == 0
    weights, bias = _nearness(train[~held], where[~held], places_P2)
    trial = _said(train[held], weights, bias)
    errors = [((_soft(trial, s) @ places_P2 - where[held]) ** 2).mean() for s in SHARPNESS]
    weights, bias = _nearness(train, where, places_P2)
    return Votes(places_P2, weights, bias, SHARPNESS[int(np.argmin(errors))])


def votes(train: Halves, where: Floats, others: Halves, places_P2: Floats) -> tuple[Floats, Floats]:
    """The votes (C, t, P) of both sets, by what is fitted on the first."""
    fitted = fit_votes(train, where, places_P2)
    return fitted(train), fitted(others)


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


def side_by_side(tokens: Halves, places_P2: Floats) -> Floats:
    """One row of features for each tubelet: those of all places side by side (C, t, P' D), 4 x 4 at most."""
    columns = len(np.unique(places_P2[:, 0]))
    rows = len(places_P2) // columns
    high, wide = -(-rows // FEWER), -(-columns // FEWER)
    x_CtRWD = tokens.astype(np.float64).reshape(*tokens.shape[:2], rows, columns, -1)
    strips = [x_CtRWD[:, :, at : at + high].mean(2) for at in range(0, rows, high)]
    cells = [strip[:, :, at : at + wide].mean(2) for strip in strips for at in range(0, columns, wide)]
    return np.concatenate(cells, -1)


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
        for number, target in enumerate(targets):
            if target.name in OF_ALL_PLACES:
                sides = [_flat(side_by_side(tokens, at)) for tokens in (train, evaluation)]
                parts[number] = ridge_predictions(sides[0], _flat(target.train), clips_n, sides[1])
        rows.append(row(encoder, {t.name: t.score(part) for t, part in zip(targets, parts, strict=True)}))
    constant = {
        t.name: t.score(np.tile(_flat(t.train).mean(0), (len(_flat(t.evaluation)), 1))) for t in targets
    }
    rows.append(row("mean of the train clips", constant))
    return rows


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])
