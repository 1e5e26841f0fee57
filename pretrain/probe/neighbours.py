"""Nearest neighbours among clips, without labels: do the clips of one video find each other?

Shapes: C clips, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.probe.ridge import Floats

NUM_EXAMPLES, NUM_NEIGHBOURS = 6, 5  # queries and their nearest clips that are written down


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


def examples(
    features_CD: Floats, videos: Sequence[str], clips: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """Queries of different videos with their nearest clips, for a picture: the first clip of each video."""

    def named(place: int) -> dict[str, Any]:
        return {"split": clips[place][0], "index": clips[place][1], "video": videos[place]}

    firsts = [
        place for place, video in enumerate(videos) if video not in videos[:place] and videos.count(video) > 1
    ]
    order = nearest(features_CD, videos, NUM_NEIGHBOURS)
    return [{"query": named(q), "nearest": [named(int(n)) for n in order[q]]} for q in firsts[:NUM_EXAMPLES]]
