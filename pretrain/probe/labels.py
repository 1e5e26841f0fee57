"""Labels as numbers, what a classifier's answers are worth, and nearest neighbours that vote.

Shapes: C clips, M other clips, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pretrain.probe.ridge import Floats

UNKNOWN = -1  # the number of a label that no train clip has
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
TOP = 5
BLOCK = 1024  # clips whose cosines to all train clips are held at once
HELD_OUT = 5  # every so manieth video of the train split chooses among settings

Singles = NDArray[np.float32]
Numbers = NDArray[np.int64]


def class_names(labels: Iterable[str]) -> list[str]:
    """The labels in the order in which classifiers number them: whole numbers by value, others by letters."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def numbered(labels: Sequence[str], names: Sequence[str]) -> Numbers:
    """The place of each label among the names, UNKNOWN where it is not among them."""
    places = {name: place for place, name in enumerate(names)}
    return np.array([places.get(label, UNKNOWN) for label in labels], np.int64)


def held_out(videos: Sequence[str], every: int = HELD_OUT) -> NDArray[np.bool_]:
    """Which clips are kept from fitting, to choose by: all of every so manieth video, in order of names."""
    kept = set(sorted(set(videos))[::every])
    return np.array([video in kept for video in videos], bool)


def accuracies(scores_CK: NDArray[np.floating], truth_C: Numbers) -> dict[str, float]:
    """Shares of clips that are right: top-1, top-5 where there are more than 5 classes, and class mean.

    A clip whose label no train clip has can only be wrong; the mean over classes leaves such labels out.
    Of equal scores the first class counts.
    """
    order_CK = np.argsort(-scores_CK, axis=1, kind="stable")
    hits_CK = order_CK == truth_C[:, None]
    found = {"top-1": float(hits_CK[:, 0].mean())}
    if scores_CK.shape[1] > TOP:
        found[f"top-{TOP}"] = float(hits_CK[:, :TOP].any(1).mean())
    each = [hits_CK[truth_C == number, 0].mean() for number in np.unique(truth_C) if number != UNKNOWN]
    found["class mean"] = float(np.mean(each)) if each else 0.0
    return found


def blind(train_C: Numbers, truth_C: Numbers, num_classes: int) -> dict[str, float]:
    """The accuracies of the answer that ignores the clip: the classes by how frequent they are in train."""
    counts = np.bincount(train_C, minlength=num_classes).astype(np.float64)
    return accuracies(np.tile(counts, (len(truth_C), 1)), truth_C)


def neighbour_votes(
    train_CD: Singles, labels_C: Numbers, others_MD: Singles, num_classes: int, ks: Sequence[int]
) -> dict[int, Floats]:
    """Votes (M, K) of each clip's k nearest train clips by cosine, each with weight exp(cosine / 0.07).

    Features are centred on the mean of the train clips first. Of equal cosines the first clips count.
    Source: DINO, arXiv:2104.14294, after Wu et al., arXiv:1805.01978; neither centres.
    """
    mean_D = train_CD.mean(0, dtype=np.float64).astype(np.float32)
    train, others = _unit(train_CD - mean_D), _unit(others_MD - mean_D)
    found = {k: np.zeros((len(others), num_classes)) for k in ks}
    for start in range(0, len(others), BLOCK):
        cosine = others[start : start + BLOCK] @ train.T
        order = np.argsort(-cosine, axis=1, kind="stable")[:, : max(ks)]
        weight = np.exp(np.take_along_axis(cosine, order, 1).astype(np.float64) / TEMPERATURE)
        rows = np.arange(len(cosine))[:, None]
        for k in ks:
            votes = found[k][start : start + BLOCK]
            np.add.at(votes, (rows, labels_C[order[:, :k]]), weight[:, :k])
    return found


def neighbour_counts(num_clips: int) -> list[int]:
    """The numbers of neighbours that are tried: those published that fit; of few clips, from one to all."""
    fitting = [k for k in NEIGHBOURS if k <= num_clips]
    return fitting or sorted({1, min(3, num_clips), num_clips})


def _unit(x_CD: Singles) -> Singles:
    norms: Singles = np.maximum(np.linalg.norm(x_CD, axis=1, keepdims=True), 1e-12)
    return x_CD / norms
