"""Writes small, real data sets of rendered clips without Ray, for tests of what reads them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rendered import key_of, write_shards
from data_pipeline.encode import encode_frames, encode_jpegs
from data_pipeline.format import (
    ACTIONS,
    META,
    STATE,
    VIDEO,
    ClipMeta,
    frame_suffix,
    to_json,
)
from data_pipeline.synthetic import (
    ACTION_NAMES,
    STATE_NAMES,
    generator,
    render_frames,
    render_texture,
    simulate,
)
from pretrain.config import RunConfig

SIZE, FPS = 32, 8.0


def npy(rows: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, rows)
    return sink.getvalue()


def encoded(frames: np.ndarray, encoding: str) -> dict[str, bytes]:
    """The members that hold a clip's frames."""
    if encoding == "jpeg":
        return {frame_suffix(k): jpeg for k, jpeg in enumerate(encode_jpegs(frames, 90))}
    return {VIDEO: encode_frames([frames], SIZE, SIZE, FPS, gop=16, crf=18, preset="veryfast")}


def write_dataset(
    root: Path,
    shard_sizes: dict[str, list[int]],
    num_frames: int = 8,
    encoding: str = "mp4",
    first_number: int = 0,
    label: Callable[[np.ndarray], str | None] | None = None,
    has_states: bool = True,
) -> Path:
    """A finished data set with the given numbers of samples in the shards of each split.

    label: of a clip, from its states (T, S). has_states: without, only the pictures tell them.
    """

    def sample(number: int) -> tuple[str, dict[str, bytes]]:
        rng = generator(7, number)
        states, actions = simulate(rng, num_frames, FPS)
        frames = render_frames(states, render_texture(rng, 2 * SIZE), SIZE)
        meta = ClipMeta(
            clip_id=key_of(number),
            video_id=key_of(number // 2),
            name=f"video-{number // 2}.mp4",
            start_s=0.0,
            end_s=num_frames / FPS,
            fps=FPS,
            num_frames=num_frames,
            width=SIZE,
            height=SIZE,
            label=None if label is None else label(states),
            state_names=STATE_NAMES if has_states else (),
            action_names=ACTION_NAMES,
            encoding=encoding,
        )
        members = {META: to_json(meta), ACTIONS: npy(actions)}
        members |= {STATE: npy(states)} if has_states else {}
        return key_of(number), members | encoded(frames, encoding)

    numbers = itertools.count(first_number)
    shards = {
        split: [map(sample, list(itertools.islice(numbers, size))) for size in sizes]
        for split, sizes in shard_sizes.items()
    }
    write_shards(
        root,
        shards,
        state_names=STATE_NAMES if has_states else (),
        action_names=ACTION_NAMES,
        clips_a_video=2,
    )
    return root


def tiny_config(dataset: Path, folder: Path, /, **changes: Any) -> RunConfig:
    """A run of seconds on one process: two narrow blocks, 8 frames of 32², 4 clips a step.

    changes: whole sections by name, laid over the defaults key by key.
    """
    plain: dict[str, Any] = {
        "name": "tiny",
        "out": str(folder),
        "data": {
            "shards": str(dataset),
            "frames": 8,
            "fps": FPS,
            "size": SIZE,
            "workers": 0,
            "shuffle_window": 2,
        },
        "model": {
            "encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8},
            "predictor": {"depth": 1, "width": 24, "heads": 2},
        },
        "target": {"momentum": {"start": 0.9, "end": 0.9}},
        "optim": {"lr": 1e-3, "warmup_steps": 2, "clip_norm": 1.0},
        "train": {
            "steps": 20,
            "global_batch": 4,
            "micro_batch": 2,
            "precision": "fp32",
            "checkpoint_every": 100,
            "log_every": 1,
            "threads": 1,
        },
        "strategy": {"kind": "single"},
        "health": {"every": 5, "on_collapse": "note"},
        "tracker": {"kind": "jsonl"},
    }
    for section, values in changes.items():
        is_replaced = not isinstance(values, dict) or section == "strategy"
        plain[section] = values if is_replaced else {**plain.get(section, {}), **values}
    return RunConfig.model_validate(plain)
