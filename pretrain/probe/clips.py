"""Which clips are probed, and what encoders make of them.

Shapes: B clips a batch, C clips, T frames, t tubelets a clip, P places a tubelet, D features, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.format import SPLITS, read_info
from data_pipeline.storage import Storage
from pretrain.config import RunConfig
from pretrain.data.augment import eval_view, normalise
from pretrain.data.reader import Clip, ClipReader
from pretrain.model.vit import Encoder
from pretrain.probe.ridge import Floats, Halves
from pretrain.probe.states import DRIFT_OF
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
