"""Which clips are probed, and what encoders make of them.

Shapes: B clips a batch, C clips, V crops, T frames, t tubelets a clip, N tokens, P places a tubelet,
D features, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.format import SPLITS, read_info
from data_pipeline.storage import Storage
from pretrain.data.reader import Clip, ClipReader
from pretrain.probe.labels import Singles
from pretrain.probe.ridge import Floats, Halves
from pretrain.probe.states import DRIFT_OF
from pretrain.probe.tokens import Looker, TokenSource
from pretrain.rng import stream

PIXELS = "raw pixels"
MAX_SIDE = 8  # tokens are averaged to at most so many places in height and width
MIN_CLIPS = 8  # of each split, for states and labels


def open_splits(root: str) -> dict[str, ClipReader]:
    """A reader for each split that the data set has, train first.

    Raises: DataError when it is not finished, or has no clip at all.
    """
    info = read_info(Storage(root))
    return {split: ClipReader(root, split) for split in SPLITS if info.num_clips.get(split)} or {
        "train": ClipReader(root, "train")  # says what is missing
    }


def choose(reader: ClipReader, limit: int, seed: int, split: str) -> list[int]:
    """Which clips of a split are probed: all, or `limit` of them drawn from the run's seed."""
    if len(reader) <= limit:
        return list(range(len(reader)))
    return sorted(stream(seed, "probe", split).permutation(len(reader))[:limit].tolist())


@dataclass(frozen=True)
class Probed:
    """Clips and what the encoders made of them.

    places[name]: (C, t, P, D) of the first segment under the middle crop; empty where it is not asked for.
    means[name]: (C, D), over all tokens of all segments and crops. states: (C, t, S), None where some clip
    has none. labels: None of a clip without one.
    indices: of the clips in their split. unreadable: a sentence for each clip that was left out.
    """

    places: dict[str, Halves]
    means: dict[str, Singles]
    states: Floats | None
    labels: tuple[str | None, ...]
    videos: tuple[str, ...]
    indices: tuple[int, ...]
    unreadable: tuple[str, ...] = ()


def place_features(
    tokens_BND: torch.Tensor, grid: tuple[int, int, int], side: int = MAX_SIDE
) -> torch.Tensor:
    """Tokens as a grid for each tubelet, averaged to at most side × side places: float16 (B, t, P, D)."""
    planes = tokens_BND.float().unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(planes, places_grid(grid, side))
    return small.flatten(2).transpose(1, 2).unflatten(0, (-1, grid[0])).half()


def places_grid(grid: tuple[int, int, int], side: int = MAX_SIDE) -> tuple[int, int]:
    return min(grid[1], side), min(grid[2], side)


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
    frame_s = max(clip.times_s[-1] - clip.times_s[0], 1e-6) / max(1, len(clip.times_s) - 1)
    for column, name in enumerate(names):
        if name in DRIFT_OF:  # of a single frame nobody knows it
            state[:, column] = np.gradient(state[:, column]) / frame_s if len(state) > 1 else 0.0
    return state.reshape(tubelets, -1, state.shape[1]).mean(1)


def probe_clips(
    looker: Looker,
    indices: Sequence[int],
    grid: tuple[int, int, int],
    on_clip: Callable[[], None],
    *,
    keeps_places: bool,
    side: int = MAX_SIDE,
    source: TokenSource | None = None,
) -> Probed:
    """Read the clips once, and run every encoder over them. Unreadable clips are left out and named.

    keeps_places: of the encoders, side × side at most, and of the pixels. source: is given all tokens, to
    keep them if it can.
    Raises: DataError when more than one clip in ten is unreadable.
    """
    names = looker.reader.info.state_names
    places: dict[str, list[Halves]] = {}
    means: dict[str, list[Singles]] = {name: [] for name in looker.encoders}
    states: list[Floats] = []
    labels: list[str | None] = []
    videos: list[str] = []
    read: list[int] = []
    unreadable: list[str] = []
    for batch in looker.batches(indices, unreadable, on_clip):
        tokens = looker.tokens(batch.looks)
        for name, tokens_BVSND in tokens.items():
            means[name].append(tokens_BVSND.float().mean((1, 2, 3)).cpu().numpy())
        if keeps_places:
            middle = looker.views // 2
            for name, tokens_BVSND in tokens.items():
                halves = place_features(tokens_BVSND[:, middle, 0], grid, side).cpu().numpy()
                places.setdefault(name, []).append(halves)
            places.setdefault(PIXELS, []).append(pixel_features(batch.looks[:, middle, 0], grid[0]))
        if source is not None:
            source.keep(tokens, len(indices))
        for clip in (segments[0] for segments in batch.clips):
            videos.append(clip.meta.video_id)
            labels.append(clip.meta.label)
            if clip.state is not None and keeps_places:
                states.append(tubelet_states(clip, names, grid[0]))
        read += batch.indices
    known = np.stack(states) if states and len(states) == len(videos) else None
    return Probed(
        {name: np.concatenate(parts) for name, parts in places.items()},
        {
            name: np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
            for name, parts in means.items()
        },
        known,
        tuple(labels),
        tuple(videos),
        tuple(read),
        tuple(unreadable),
    )
