"""What can be read out of frozen features, always beside the same encoder before training.

Of labelled clips what they show: by an attentive head, a linear one, and neighbours. Of data that know their
true states those, by ridge regression from the features of each tubelet. Of others, which clips are of the
same video. All that is not the attentive head is a closed form or convex: no number depends on luck.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import DataError, UsageError
from data_pipeline.storage import Storage
from pretrain.checkpoint.retention import PROBES_FILE
from pretrain.config import RunConfig
from pretrain.data.reader import ClipReader
from pretrain.probe import classify
from pretrain.probe.clips import (
    MAX_SIDE,
    MIN_CLIPS,
    PIXELS,
    Probed,
    choose,
    open_splits,
    places_grid,
    probe_clips,
)
from pretrain.probe.heads import HEADS_FOLDER, publish_head
from pretrain.probe.kinds import OF_LABELS, Kind, allowed
from pretrain.probe.neighbours import examples, retrieval, retrieval_chance
from pretrain.probe.result import PROBE_FILE, Progress, add_line, row
from pretrain.probe.states import make_targets, places, score_states
from pretrain.probe.subject import TRAINED, Subject, device_of, preprocessing
from pretrain.probe.tokens import Looker, TokenSource

PLACES_BYTES = 32 << 30
BLIND_BOTH = "without looking"
HOW_LABELS = (
    "labels of clips, settings chosen on train videos kept from fitting. attentive: a learned query over all "
    "tokens of all segments, probabilities averaged over crops; linear: logistic regression on the mean "
    "token; knn: cosine of centred mean tokens, votes weighted by exp(cosine / 0.07)"
)


@dataclass(frozen=True)
class Asked:
    """What of a probing may be chosen. kinds: None for all that the data allow.

    segments, views: of a clip; in training of heads the middle crop alone. frames, fps, size: of a segment,
    None for those that the encoder was trained on. all_clips: else probe.train_clips and probe.eval_clips.
    """

    data: str | None = None
    kinds: tuple[Kind, ...] | None = None
    segments: int = 1
    views: int = 1
    heads: classify.Heads = field(default_factory=classify.Heads)
    frames: int | None = None
    fps: float | None = None
    size: int | None = None
    all_clips: bool = False
    device: str = "cpu"


def run_probe(
    subject: Subject,
    out: Path,
    asked: Asked = Asked(),
    *,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Probe an encoder, into `<out>/probe.json`; of a run a line of `probes.jsonl` too.

    scratch: a folder for tokens that attentive heads read again each epoch; None encodes clips again.
    progress: called with (stage, done, total, note) after each clip and each epoch.
    Raises: DataError with too few clips, or too many that cannot be read; UsageError for a kind of probe that
    the data do not allow.
    """
    began = time.monotonic()
    device = device_of(asked.device)
    subject = subject.reading(asked.frames, asked.fps, asked.size).to(device)
    config = subject.config
    root = asked.data or config.probe.data or config.data.sources[0].shards
    readers = open_splits(root)
    info = next(iter(readers.values())).info
    chosen = _chosen(readers, config, all_clips=asked.all_clips)
    kinds = allowed(asked.kinds, readers, chosen, root)
    _check_counts(kinds, chosen, root)
    keeps_places = "states" in kinds or "retrieval" in kinds
    if keeps_places:
        _check_memory(sum(map(len, chosen.values())), config, len(subject.encoders))
    side = config.probe.places or MAX_SIDE
    counter = _Counter(sum(map(len, chosen.values())), progress)
    found: dict[str, Probed] = {}
    sources: dict[str, TokenSource] = {}
    for split, reader in readers.items():
        views = asked.views if split == "eval" else 1
        looker = Looker(reader, config.data, subject.encoders, asked.segments, views, config.probe.batch)
        folder = scratch / split if scratch is not None else None
        sources[split] = TokenSource(looker, folder if "attentive" in kinds else None)
        found[split] = probe_clips(
            looker,
            chosen[split],
            config.grid,
            counter.one,
            keeps_places=keeps_places,
            side=side,
            source=sources[split],
        )
    parts: list[dict[str, Any]] = []
    heads: dict[str, tuple[bytes, dict[str, Any]]] = {}
    shown = preprocessing(config, asked.segments, asked.views)
    if "states" in kinds:
        parts.append(_states(found, info.state_names, places_grid(config.grid, side)))
    if "retrieval" in kinds:
        parts.append(_retrieval(found, root))
    if any(kind in OF_LABELS for kind in kinds):
        part, heads = _labels(found, sources, subject, asked, kinds, root, device, progress)
        parts.append(part)
    result: dict[str, Any] = {
        "kind": next((kind for kind in ("states", "retrieval") if kind in kinds), "labels"),
        "kinds": list(kinds),
        "step": subject.step,
        "num_train_clips": len(found["train"].videos) if "train" in found else 0,
        "num_eval_clips": len(found["eval"].videos) if "eval" in found else 0,
        "data": info.name,
        "data_fingerprint": info.fingerprint,
        "encoder": subject.facts,
        "preprocessing": shown,
        "unreadable": [sentence for probed in found.values() for sentence in probed.unreadable],
        **_merged(parts),
    }
    name = "last" if subject.step is None else f"step-{subject.step}"
    beside = {key: result[key] for key in ("encoder", "preprocessing", "data", "data_fingerprint")}
    for kind, (weights, facts) in heads.items():
        publish_head(out / HEADS_FOLDER / f"{kind}-{name}", weights, facts | beside)
    result["seconds"] = round(time.monotonic() - began, 2)
    Storage(out).publish(PROBE_FILE, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    if subject.step is not None:  # by which checkpoints may be kept
        scores = {each["encoder"]: each["scores"] for each in result["rows"]}
        line = {"step": subject.step, "kind": "offline", "scores": scores[TRAINED]}
        add_line(out / PROBES_FILE, line | {"untrained": scores.get("untrained", {}), "data": info.name})
    return result


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def one(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress("probe", self._done, self._total, "clips")


def _chosen(readers: dict[str, ClipReader], config: RunConfig, *, all_clips: bool) -> dict[str, list[int]]:
    limits = {"train": config.probe.train_clips, "eval": config.probe.eval_clips}
    return {
        split: choose(reader, len(reader) if all_clips else limits[split], config.seed, split)
        for split, reader in readers.items()
    }


def _check_counts(kinds: Sequence[Kind], chosen: dict[str, list[int]], root: str) -> None:
    """Raises: DataError."""
    train, evaluation = (len(chosen.get(split, [])) for split in ("train", "eval"))
    if tuple(kinds) != ("retrieval",) and min(train, evaluation) < MIN_CLIPS:
        raise DataError(
            f"{root} has {train} train and {evaluation} eval clips to probe: need at least "
            f"{MIN_CLIPS} of each; name a larger data set with probe.data=..., or shard more videos"
        )


def _check_memory(clips: int, config: RunConfig, encoders: int) -> None:
    """Raises: UsageError when the features of places, which stay in memory, would take too much."""
    rows, columns = places_grid(config.grid, config.probe.places or MAX_SIDE)
    needed = 2 * clips * config.grid[0] * rows * columns * config.model.encoder.shape[0] * encoders
    if needed > PLACES_BYTES:
        raise UsageError(
            f"states and retrieval of {clips:,} clips take {needed / 1e9:.0f} GB of memory, and at most "
            f"{PLACES_BYTES / 1e9:.0f} are taken: leave --all-clips out, or ask for labels alone with --kind"
        )


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parts of a result as one: a row an encoder with all its scores; the blind answers last, as one."""
    rows: dict[str, dict[str, Any]] = {}
    blind_names = [part["rows"][-1]["encoder"] for part in parts]
    for part in parts:
        for each in part["rows"][:-1]:
            rows.setdefault(each["encoder"], {}).update(each["scores"])
    blind = {name: score for part in parts for name, score in part["rows"][-1]["scores"].items()}
    last = {"encoder": blind_names[0] if len(parts) == 1 else BLIND_BOTH, "scores": blind}
    more = {
        key: value for part in parts for key, value in part.items() if key not in ("rows", "how", "units")
    }
    return {
        "how": "; ".join(part["how"] for part in parts),
        "units": {name: unit for part in parts for name, unit in part["units"].items()},
        **more,
        "rows": [*({"encoder": name, "scores": scores} for name, scores in rows.items()), last],
    }


def _labels(
    found: dict[str, Probed],
    sources: dict[str, TokenSource],
    subject: Subject,
    asked: Asked,
    kinds: Sequence[Kind],
    root: str,
    device: torch.device,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, tuple[bytes, dict[str, Any]]]]:
    """That part of the result, and of each kind that has one the head of the trained encoder."""
    data = classify.labelled(found["train"], found["eval"], root)
    means = {
        name: (found["train"].means[name][data.train_rows], found["eval"].means[name][data.eval_rows])
        for name in subject.encoders
    }

    def on_epoch(done: int, total: int) -> None:
        if progress is not None:
            progress("heads", done, total, "epochs")

    def attentive() -> classify.Answer:
        forms = {name: (e.width, e.width // e.head_width) for name, e in subject.encoders.items()}
        train, evaluation = ((sources[split], found[split]) for split in ("train", "eval"))
        seed = subject.config.seed
        return classify.by_attention(data, train, evaluation, forms, asked.heads, seed, device, on_epoch)

    ways: dict[str, Callable[[], classify.Answer]] = {
        "attentive": attentive,
        "linear": lambda: classify.by_line(data, means),
        "knn": lambda: classify.by_neighbours(data, means),
    }
    answers = {kind: ways[kind]() for kind in OF_LABELS if kind in kinds}
    rows = [
        row(name, {f"{k} {s}": v for k, answer in answers.items() for s, v in answer.scores[name].items()})
        for name in subject.encoders
    ]
    ignorant = {f"{k} {s}": v for k in answers for s, v in classify.blind_scores(data).items()}
    part: dict[str, Any] = {
        "how": HOW_LABELS,
        "units": dict.fromkeys(ignorant, "share right"),
        "labels": classify.facts(data),
        "tried": {kind: answer.tried for kind, answer in answers.items()},
        "rows": [*rows, row(classify.BLIND, ignorant)],
    }
    heads: dict[str, tuple[bytes, dict[str, Any]]] = {
        str(kind): (weights, {"kind": kind, "labels": data.names, "scores": answer.scores[TRAINED], **facts})
        for kind, answer in answers.items()
        for name, (weights, facts) in answer.heads.items()
        if name == TRAINED
    }
    return part, heads


def _states(found: dict[str, Probed], names: Sequence[str], side: tuple[int, int]) -> dict[str, Any]:
    train, evaluation = found["train"], found["eval"]
    if train.states is None or evaluation.states is None:
        raise DataError(
            "some clips of the data set lack the states that it says it has; run `foreframe verify` on it"
        )
    targets = make_targets(names, train.states, evaluation.states)
    features = {name: (train.places[name], evaluation.places[name]) for name in train.places}
    at = {name: places(*(side if name != PIXELS else (MAX_SIDE, MAX_SIDE))) for name in features}
    return {
        "how": (
            "ridge regression from each tubelet's tokens to its frames' mean state: from their mean and "
            "spread over space, and from where the tokens themselves say the object is, by another ridge "
            "regression. Penalties are chosen on every fifth train clip; scores are of the eval clips. "
            f"'{PIXELS}' are the same from the colours of 16 × 16 squares"
        ),
        "units": {target.name: target.unit for target in targets},
        "rows": score_states(features, targets, at),
    }


def _retrieval(found: dict[str, Probed], root: str) -> dict[str, Any]:
    videos = [video for probed in found.values() for video in probed.videos]
    several = [video for video in set(videos) if videos.count(video) > 1]
    if len(several) < 2:
        raise DataError(
            f"{root} has {len(videos)} clips, and {len(several)} videos with two clips or more: need at "
            f"least two such videos to look for neighbours of the same video; cut shorter clips or add videos"
        )
    names = next(iter(found.values())).places
    clips = [(split, index) for split, probed in found.items() for index in probed.indices]
    whole = {
        n: np.concatenate([p.places[n].astype(np.float64).mean((1, 2)) for p in found.values()])
        for n in names
    }
    rows = [row(name, retrieval(features, videos)) for name, features in whole.items()]
    return {
        "how": (
            "cosine of centred clip means; a clip's neighbours are looked for among all other clips of both "
            "splits, those of its own video count as right"
        ),
        "units": {"top-1": "share right", "mean average precision": "0 to 1"},
        "num_videos": len(set(videos)),
        "rows": [*rows, row("chance", retrieval_chance(videos))],
        "examples": examples(whole[TRAINED], videos, clips),
    }
