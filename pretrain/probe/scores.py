"""What small features of some clips tell: the scores of a probing while training, in closed form or convex.

Shapes: C clips, t tubelets a clip, P places a tubelet, D width, S states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import DataError
from pretrain.probe.classify import Labelled, by_line, by_neighbours, labelled
from pretrain.probe.clips import Probed
from pretrain.probe.kinds import Kind
from pretrain.probe.labels import Singles
from pretrain.probe.neighbours import retrieval
from pretrain.probe.result import row
from pretrain.probe.ridge import Floats, Halves
from pretrain.probe.states import make_targets, places, score_states

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Truth:
    """What is known of a clip. states: (t, S), of each tubelet."""

    video: str
    label: str | None
    states: Floats | None


def score_pooled(
    train: tuple[Halves, Sequence[Truth]],
    evaluation: tuple[Halves, Sequence[Truth]],
    kinds: Sequence[Kind],
    state_names: Sequence[str],
    grid: tuple[int, int],
    where: str,
) -> Scores:
    """Scores by name. train, evaluation: features of places (C, t, P, D) with the truths of their clips.

    grid: rows and columns of the places.

    Raises: DataError when what is asked for cannot be told from these clips.
    """
    scores: Scores = {}
    if "linear" in kinds or "knn" in kinds:
        splits = [_labels_alone(truths) for _, truths in (train, evaluation)]
        try:
            data = labelled(splits[0], splits[1], where)
            scores |= _of_labels(data, _means(train[0]), _means(evaluation[0]))
        except DataError:
            if "states" not in kinds:  # else these are worth having alone
                raise
    if "states" in kinds:
        scores |= _of_states(train, evaluation, state_names, grid)
    if "retrieval" in kinds:
        both = np.concatenate([_means(features) for features, _ in (train, evaluation) if len(features)])
        videos = [truth.video for _, truths in (train, evaluation) for truth in truths]
        if sum(videos.count(video) > 1 for video in set(videos)) < 2:
            raise DataError(f"{where} has no two videos of which two clips were read")
        scores |= row("", retrieval(both.astype(np.float64), videos))["scores"]
    return scores


def _of_labels(data: Labelled, train_CD: Singles, eval_CD: Singles) -> Scores:
    means = {"": (train_CD[data.train_rows], eval_CD[data.eval_rows])}
    answers = {"linear": by_line(data, means), "knn": by_neighbours(data, means)}
    found = {f"{kind} {name}": s for kind, answer in answers.items() for name, s in answer.scores[""].items()}
    plain: Scores = row("", found)["scores"]
    return plain


def _of_states(
    train: tuple[Halves, Sequence[Truth]],
    evaluation: tuple[Halves, Sequence[Truth]],
    names: Sequence[str],
    grid: tuple[int, int],
) -> Scores:
    known = [
        np.array([truth.states for truth in truths if truth.states is not None])
        for _, truths in (train, evaluation)
    ]
    if [len(states) for states in known] != [len(train[0]), len(evaluation[0])]:
        raise DataError("some clips lack the states that their data set says it has")
    targets = make_targets(names, known[0], known[1])
    at = {"": places(*grid)}
    found: Scores = score_states({"": (train[0], evaluation[0])}, targets, at)[0]["scores"]
    return found


def _means(features_CtPD: Halves) -> Singles:
    """The mean token of each clip (C, D)."""
    means: Singles = features_CtPD.astype(np.float32).mean((1, 2))
    return means


def _labels_alone(truths: Sequence[Truth]) -> Probed:
    labels, videos = tuple(t.label for t in truths), tuple(t.video for t in truths)
    return Probed({}, {}, None, labels, videos, tuple(range(len(truths))))
