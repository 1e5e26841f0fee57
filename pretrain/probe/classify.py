"""Labels of whole clips, read from frozen features in three ways, side by side for every encoder.

Settings (k-NN: the number of neighbours; linear: the penalty; attentive: learning rate and weight decay) are
chosen on videos of the train split that were kept from fitting, never on eval.

Shapes: C clips, V crops, N tokens of all segments, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from data_pipeline.errors import DataError
from pretrain.probe.attentive import (
    LEARNING_RATES,
    STEP_CLIPS,
    WEIGHT_DECAYS,
    HeadForm,
    SideBySide,
    epochs_for,
    plain,
    settings,
)
from pretrain.probe.clips import MIN_CLIPS, Probed
from pretrain.probe.labels import (
    HELD_OUT,
    UNKNOWN,
    Numbers,
    Singles,
    accuracies,
    blind,
    class_names,
    held_out,
    neighbour_counts,
    neighbour_votes,
    numbered,
)
from pretrain.probe.linear import PENALTIES, fit_linear
from pretrain.probe.tokens import TokenSource
from pretrain.rng import stream

ATTENTIVE_HELD_OUT = 10  # every so manieth video; these heads are not fitted again on all
BLIND = "most frequent class"
FORWARD_CLIPS = 16  # whose tokens all heads see at once
MAX_NAMED = 20
OnEpoch = Callable[[int, int], None]


@dataclass(frozen=True)
class Heads:
    """How attentive heads are trained. epochs: None for as many as `epochs_for` says."""

    blocks: int = 1
    epochs: int | None = None
    lrs: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS


@dataclass(frozen=True)
class Labelled:
    """The labelled clips of both splits as numbers. rows: of the clips in what was probed."""

    names: list[str]
    train_rows: NDArray[np.int64]
    eval_rows: NDArray[np.int64]
    train: Numbers
    evaluation: Numbers
    videos: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass
class Answer:
    """What one way of classifying found: accuracies by encoder, all settings tried, the head to hand on."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    heads: dict[str, tuple[bytes, dict[str, Any]]] = field(default_factory=dict)


def labelled(train: Probed, evaluation: Probed, where: str) -> Labelled:
    """Raises: DataError when there are fewer than 8 labelled clips in a split, or fewer than two classes."""
    rows = [np.flatnonzero([label is not None for label in split.labels]) for split in (train, evaluation)]
    if min(map(len, rows)) < MIN_CLIPS:
        raise DataError(
            f"{where} has {len(rows[0])} train and {len(rows[1])} eval clips with a label that were read: "
            f"need at least {MIN_CLIPS} of each; give more videos labels (the column `label` of a list), or "
            f"probe something else with --kind"
        )
    said = [
        [str(split.labels[row]) for row in own] for split, own in zip((train, evaluation), rows, strict=True)
    ]
    names = class_names(said[0])
    if len(names) < 2:
        raise DataError(f"all labelled train clips of {where} are {names[0]!r}: need at least two labels")
    truth = numbered(said[1], names)
    unknown = sorted({label for label, number in zip(said[1], truth, strict=True) if number == UNKNOWN})
    videos = tuple(train.videos[row] for row in rows[0])
    return Labelled(names, rows[0], rows[1], numbered(said[0], names), truth, videos, tuple(unknown))


def by_neighbours(data: Labelled, means: dict[str, tuple[Singles, Singles]]) -> Answer:
    """k-NN on the means over all tokens; k is the best on the held-out videos."""
    answer, held = Answer(), _held(data)
    for name, (train, evaluation) in means.items():
        ks, classes = neighbour_counts(int((~held).sum())), len(data.names)
        trial = neighbour_votes(train[~held], data.train[~held], train[held], classes, ks)
        found = neighbour_votes(train, data.train, evaluation, classes, ks)
        answer.tried[name] = [
            {"k": k, "held-out top-1": _top1(trial[k], data.train[held])}
            | accuracies(found[k], data.evaluation)
            for k in ks
        ]
        answer.scores[name] = accuracies(found[_choose(answer.tried[name], "k")], data.evaluation)
    return answer


def by_line(data: Labelled, means: dict[str, tuple[Singles, Singles]]) -> Answer:
    """Logistic regression on the means over all tokens; its penalty is the best on the held-out videos."""
    answer, held = Answer(), _held(data)
    for name, (train, evaluation) in means.items():
        classes = len(data.names)
        trials = fit_linear(train[~held], data.train[~held], classes)
        fits = dict(zip(PENALTIES, fit_linear(train, data.train, classes), strict=True))
        answer.tried[name] = [
            {"penalty": penalty, "held-out top-1": _top1(trial.scores(train[held]), data.train[held])}
            | accuracies(fits[penalty].scores(evaluation), data.evaluation)
            for penalty, trial in zip(PENALTIES, trials, strict=True)
        ]
        chosen = fits[_choose(answer.tried[name], "penalty")]
        answer.scores[name] = accuracies(chosen.scores(evaluation), data.evaluation)
        tensors = {
            "weight": torch.from_numpy(np.ascontiguousarray(chosen.weights.T)).float(),
            "bias": torch.from_numpy(chosen.bias).float(),
        }
        answer.heads[name] = save(tensors), {"reads": "the mean over all tokens of all segments and crops"}
    return answer


def by_attention(
    data: Labelled,
    train: tuple[TokenSource, Probed],
    evaluation: tuple[TokenSource, Probed],
    forms: dict[str, tuple[int, int]],
    how: Heads,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda *_: None,
) -> Answer:
    """Attentive heads, all settings at once; the best on the held-out videos is the one that counts.

    forms: width and attention heads of each encoder.
    """
    held = _held(data, ATTENTIVE_HELD_OUT)
    fitted = np.flatnonzero(~held)
    epochs = how.epochs or epochs_for(len(fitted))
    steps = epochs * -(-len(fitted) // STEP_CLIPS)
    each = settings(how.lrs, how.weight_decays)
    sides = {
        name: SideBySide(HeadForm(width, heads, how.blocks, len(data.names)), each, steps, seed, device)
        for name, (width, heads) in forms.items()
    }
    labels = torch.from_numpy(data.train)
    for epoch in range(epochs):
        order = stream(seed, "probe-order", epoch).permutation(fitted)
        steps_of = [order[start : start + STEP_CLIPS] for start in range(0, len(order), STEP_CLIPS)]
        groups = [(step, part) for step in steps_of for part in _parts(step)]
        rows = [data.train_rows[part].tolist() for _, part in groups]
        taken = train[0].take(rows, train[1].indices)
        for (step, part), tokens in zip(groups, taken, strict=True):
            for name, side in sides.items():
                side.add(tokens[name][:, 0], labels[part], 1 / len(step))
                if part[-1] == step[-1]:
                    side.step()
        on_epoch(epoch + 1, epochs)
    trial = _shares(sides, train, data.train_rows[held])
    found = _shares(sides, evaluation, data.eval_rows)
    answer = Answer()
    for name, side in sides.items():
        answer.tried[name] = [
            plain(one)
            | {"held-out top-1": _top1(trial[name][place], data.train[held])}
            | accuracies(found[name][place], data.evaluation)
            for place, one in enumerate(each)
        ]
        best = _best(answer.tried[name])
        answer.scores[name] = accuracies(found[name][best], data.evaluation)
        head = side.heads[best]
        form = {"form": vars(head.form), "epochs": epochs, **plain(each[best])}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()}
        answer.heads[name] = save(tensors), {"reads": "all tokens of all segments of a crop"} | form
    return answer


def blind_scores(data: Labelled) -> dict[str, float]:
    return blind(data.train, data.evaluation, len(data.names))


def facts(data: Labelled) -> dict[str, Any]:
    """The labels in the order in which every head numbers them, and how many clips have which."""
    counts = np.bincount(data.train, minlength=len(data.names)).tolist()
    return {
        "labels": data.names,
        "train_clips_of_each": counts,
        "num_train_clips": len(data.train),
        "num_eval_clips": len(data.evaluation),
        "labels_in_eval_only": list(data.unknown[:MAX_NAMED]),
    }


def _parts(step: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [step[start : start + FORWARD_CLIPS] for start in range(0, len(step), FORWARD_CLIPS)]


def _shares(
    sides: dict[str, SideBySide], split: tuple[TokenSource, Probed], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Probabilities of some rows (heads, C, K), by encoder."""
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sides}
    parts = [part.tolist() for part in _parts(rows)]
    for tokens in split[0].take(parts, split[1].indices):
        for name, side in sides.items():
            found[name].append(side.shares(tokens[name]).numpy())
    return {name: np.concatenate(parts, 1) for name, parts in found.items()}


def _held(data: Labelled, every: int = HELD_OUT) -> NDArray[np.bool_]:
    """The videos to choose by. Raises: DataError when all labelled clips are of one video."""
    held = held_out(data.videos, every)
    if held.all():
        raise DataError("all labelled train clips are of one video: need several, to choose settings by some")
    return held


def _top1(scores_CK: NDArray[np.floating], truth_C: Numbers) -> float:
    return accuracies(scores_CK, truth_C)["top-1"]


def _best(tried: Sequence[dict[str, Any]]) -> int:
    """The first of the settings with the best held-out accuracy."""
    return int(np.argmax([one["held-out top-1"] for one in tried]))


def _choose(tried: Sequence[dict[str, Any]], key: str) -> Any:
    return tried[_best(tried)][key]
