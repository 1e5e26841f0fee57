"""What can be read out of frozen features, always beside the same encoder before training.

Where the data set knows its true states, a ridge regression reads them from the features of each tubelet;
where it does not (real videos), the nearest neighbour of each clip should come from the same video.
Everything is a closed form (ridge.py): no probe is trained, no number depends on luck.

Shapes: B clips a batch, C clips, T frames, t tubelets a clip, P places a tubelet, D features, S states.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.storage import Storage
from pretrain.checkpoint import load_encoder, untrained_encoder
from pretrain.checkpoint.retention import PROBES_FILE
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
from pretrain.probe.neighbours import examples, retrieval, retrieval_chance
from pretrain.probe.result import PROBE_FILE, Progress, row
from pretrain.probe.states import make_targets, places, score_states


def run_probe(run: Path, *, step: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Probe a run's newest checkpoint (or that of `step`), into `<run>/probe.json` and `probes.jsonl`.

    progress: called with (stage, done, total, note) after each clip.
    Raises: CheckpointError without a whole checkpoint, DataError with too few clips.
    """
    began = time.monotonic()
    trained, config, at_step = load_encoder(run, step)
    encoders = {"trained": trained, "untrained": untrained_encoder(config)}
    root = config.probe.data or config.data.sources[0].shards
    readers = open_splits(root)
    info = next(iter(readers.values())).info
    limits = {"train": config.probe.train_clips, "eval": config.probe.eval_clips}
    chosen = {split: choose(reader, limits[split], config.seed, split) for split, reader in readers.items()}
    counts = {split: len(chosen.get(split, [])) for split in limits}
    if info.state_names and min(counts.values()) < MIN_CLIPS:
        raise DataError(
            f"{root} has {counts['train']} train and {counts['eval']} eval clips to probe: need at least "
            f"{MIN_CLIPS} of each; name a larger data set with probe.data=..., or shard more videos"
        )
    total, done = sum(counts.values()), 0

    def on_clip() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("probe", done, total, "clips")

    found = {s: probe_clips(reader, chosen[s], encoders, config, on_clip) for s, reader in readers.items()}
    result: dict[str, Any] = {
        "kind": "states" if info.state_names else "retrieval",
        "step": at_step,
        "num_train_clips": len(found["train"].videos) if "train" in found else 0,
        "num_eval_clips": len(found["eval"].videos) if "eval" in found else 0,
        "data": info.name,
        "data_fingerprint": info.fingerprint,
        "unreadable": [sentence for probed in found.values() for sentence in probed.unreadable],
    }
    result |= (
        _states(found, info.state_names, places_grid(config.grid))
        if info.state_names
        else _retrieval(found, root)
    )
    result["seconds"] = round(time.monotonic() - began, 2)
    Storage(run).publish(PROBE_FILE, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    scores: dict[str, float | None] = next(
        (row["scores"] for row in result["rows"] if row["encoder"] == "trained"), {}
    )
    with (run / PROBES_FILE).open("a", encoding="utf-8") as file:  # by which checkpoints may be kept
        file.write(json.dumps({"step": at_step, "scores": scores}) + "\n")
    return result


def _states(found: dict[str, Probed], names: Sequence[str], side: tuple[int, int]) -> dict[str, Any]:
    train, evaluation = found["train"], found["eval"]
    if train.states is None or evaluation.states is None:
        raise DataError(
            "some clips of the data set lack the states that it says it has; run `foreframe verify` on it"
        )
    targets = make_targets(names, train.states, evaluation.states)
    features = {name: (train.features[name], evaluation.features[name]) for name in train.features}
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
    names = next(iter(found.values())).features
    clips = [(split, index) for split, probed in found.items() for index in probed.indices]
    whole = {
        n: np.concatenate([p.features[n].astype(np.float64).mean((1, 2)) for p in found.values()])
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
        "examples": examples(whole["trained"], videos, clips),
    }
