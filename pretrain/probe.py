"""What can be read out of frozen features, always beside the same encoder before training.

Where the data set knows its true states, a ridge regression reads them from the features of each tubelet;
where it does not (real videos), the nearest neighbour of each clip should come from the same video.
Everything is a closed form (readout.py): no probe is trained, no number depends on luck.

Shapes: B clips a batch, C clips, T frames, t tubelets a clip, P places a tubelet, D features, S states.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.format import SPLITS, read_info
from data_pipeline.storage import Storage
from pretrain.checkpoint import load_encoder, untrained_encoder
from pretrain.checkpoint.retention import PROBES_FILE
from pretrain.config import RunConfig
from pretrain.data.augment import eval_view, normalise
from pretrain.data.reader import Clip, ClipReader
from pretrain.model.vit import Encoder
from pretrain.readout import (
    DRIFT_OF,
    Floats,
    Halves,
    make_targets,
    nearest,
    places,
    retrieval,
    retrieval_chance,
    row,
    score_states,
)
from pretrain.rng import stream

PROBE_FILE = "probe.json"
PIXELS = "raw pixels"
MAX_SIDE = 8  # tokens are averaged to at most so many places in height and width
NUM_EXAMPLES, NUM_NEIGHBOURS = 6, 5  # queries and their nearest clips that are written down
MIN_CLIPS = 8  # of each split, for states
Progress = Callable[[str, int, int, str], None]  # stage, done, total, note


def choose(reader: ClipReader, limit: int, seed: int, split: str) -> list[int]:
    """Which clips of a split are probed: all, or `limit` of them drawn from the run's seed."""
    if len(reader) <= limit:
        return list(range(len(reader)))
    return sorted(stream(seed, "probe", split).permutation(len(reader))[:limit].tolist())


@dataclass(frozen=True)
class Probed:
    """Clips and what the encoders made of them: features[name] is (C, t, P, D), states (C, t, S).

    indices: of the clips in their split. unreadable: a sentence for each clip that was left out.
    """

    features: dict[str, Halves]
    states: Floats | None
    videos: tuple[str, ...]
    indices: tuple[int, ...]
    unreadable: tuple[str, ...] = ()


@torch.inference_mode()
def place_features(encoder: Encoder, views_BTHWC: torch.Tensor, grid: tuple[int, int, int]) -> Halves:
    """An encoder's tokens as a grid for each tubelet, averaged to at most 8 × 8 places: (B, t, P, D)."""
    device = next(encoder.parameters()).device
    tokens_BND = encoder(normalise(views_BTHWC).to(device)).float()
    planes = tokens_BND.unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(planes, places_grid(grid)).flatten(2).transpose(1, 2)
    halves: Halves = small.unflatten(0, (-1, grid[0])).half().cpu().numpy()
    return halves


def places_grid(grid: tuple[int, int, int]) -> tuple[int, int]:
    return min(grid[1], MAX_SIDE), min(grid[2], MAX_SIDE)


def pixel_features(views_BTHWC: torch.Tensor, tubelets: int) -> Halves:
    """Colours of 16 × 16 squares of each tubelet's frames, four a place: no encoder at all. (B, t, P, D)."""
    batch, frames = views_BTHWC.shape[:2]
    flat = views_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.adaptive_avg_pool2d(flat, 2 * MAX_SIDE)
    folded = torch.nn.functional.pixel_unshuffle(small, 2).flatten(2)  # (B T, 12, P)
    x = folded.reshape(batch, tubelets, frames // tubelets, -1, MAX_SIDE**2)
    halves: Halves = x.permute(0, 1, 4, 2, 3).flatten(3).half().numpy()
    return halves


def tubelet_states(clip: Clip, names: Sequence[str], tubelets: int) -> Floats:
    """Mean of each tubelet's frames' states (t, S); offsets of the background as speeds."""
    assert clip.state is not None
    state = clip.state.astype(np.float64)
    frame_s = max(clip.times_s[-1] - clip.times_s[0], 1e-6) / (len(clip.times_s) - 1)
    for column, name in enumerate(names):
        if name in DRIFT_OF:
            state[:, column] = np.gradient(state[:, column]) / frame_s
    return state.reshape(tubelets, -1, state.shape[1]).mean(1)


def probe_clips(
    reader: ClipReader,
    indices: Sequence[int],
    encoders: dict[str, Encoder],
    config: RunConfig,
    on_clip: Callable[[], None],
) -> Probed:
    """Read the clips once, and run every encoder over them. Unreadable clips are left out and named.

    Raises: DataError when more than one clip in ten is unreadable.
    """
    tubelets = config.grid[0]
    names = reader.info.state_names
    features: dict[str, list[Halves]] = {name: [] for name in (*encoders, PIXELS)}
    states: list[Floats] = []
    videos: list[str] = []
    read: list[int] = []
    unreadable: list[str] = []
    for batch in _batches(indices, config.probe.batch):
        views = []
        for index in batch:
            on_clip()
            try:
                clip = reader.read_for(config.data, index)
            except DataError as error:
                unreadable.append(str(error))
                if len(unreadable) * 10 > len(indices):
                    raise DataError(
                        f"{len(unreadable)} of {len(indices)} clips are unreadable, the last: {error}"
                    ) from error
                continue
            views.append(eval_view(clip.frames_THWC, config.data.size))
            videos.append(clip.meta.video_id)
            read.append(index)
            if clip.state is not None:
                states.append(tubelet_states(clip, names, tubelets))
        if not views:
            continue
        stacked = torch.stack(views)
        for name, encoder in encoders.items():
            features[name].append(place_features(encoder, stacked, config.grid))
        features[PIXELS].append(pixel_features(stacked, tubelets))
    whole = {name: np.concatenate(parts) for name, parts in features.items()}
    known = np.stack(states) if len(states) == len(videos) else None
    return Probed(whole, known, tuple(videos), tuple(read), tuple(unreadable))


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


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


def read_probe(run: Path) -> dict[str, Any] | None:
    """What the last probe of a run found; None before the first.

    Raises: DataError when the file is there and cannot be read.
    """
    return read_json(run / PROBE_FILE, f"`foreframe probe {run}` writes it anew")


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """A JSON object of a run's folder; None when it is absent.

    remedy: what to do about it when it is damaged.
    Raises: DataError when it is there and cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}): {remedy}") from error
    return found


def open_splits(root: str) -> dict[str, ClipReader]:
    """A reader for each split that the data set has, train first.

    Raises: DataError when it is not finished, or has no clip at all.
    """
    info = read_info(Storage(root))
    return {split: ClipReader(root, split) for split in SPLITS if info.num_clips.get(split)} or {
        "train": ClipReader(root, "train")  # says what is missing
    }


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
        "examples": _examples(whole["trained"], videos, clips),
    }


def _examples(
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
