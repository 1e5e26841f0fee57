"""Pictures of a run: clips under their masks, features as colours, nearest neighbours.

They have a clear background and mid-grey words, so that they read on light and on dark pages.

Shapes: T frames, t h w token grid, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from data_pipeline.errors import CheckpointError, DataError, why
from data_pipeline.storage import read_regular
from pretrain.checkpoint import load_encoder, read_run_config, untrained_encoder
from pretrain.config import RunConfig
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, MaskConfig
from pretrain.curves import COLOURS, Picture
from pretrain.data.augment import eval_view, normalise
from pretrain.data.reader import ClipReader
from pretrain.masks import hidden_in
from pretrain.model.vit import Encoder
from pretrain.probe import Progress, open_splits, read_probe
from pretrain.rng import stream
from pretrain.sheets import GREY, Pixels, framed, scale, sheet_of, spread

FOLDER = "pictures"
RIGHT, WRONG = (47, 158, 110), (200, 70, 70)
NUM_CLIPS, NUM_FRAMES = 4, 6


def draw_pictures(run: Path, progress: Progress | None = None) -> tuple[list[Picture], list[str]]:
    """Pictures of clips that a run as it stands allows, and a sentence for each one that cannot be drawn.

    Finished, unfinished and broken runs all get what their folder allows.
    Raises: CheckpointError when the folder has no readable config, so is no run.
    """
    config = config_of(run)
    (run / FOLDER).mkdir(exist_ok=True)
    drawn: list[Picture] = []
    missing: list[str] = []
    steps: list[tuple[str, Callable[[], list[Picture]]]] = [
        ("clips with their masks", lambda: _masks(config, run / FOLDER)),
        ("features as colours", lambda: [_features(run, config)]),
        ("neighbours", lambda: _neighbours(run, config)),
    ]
    for number, (what, draw) in enumerate(steps):
        if progress is not None:
            progress("report", number, len(steps), "pictures")
        try:
            drawn += draw()
        except (DataError, CheckpointError) as error:
            missing.append(f"no picture of {what}: {error}")
    if progress is not None:
        progress("report", len(steps), len(steps), "pictures")
    return drawn, missing


def config_of(run: Path) -> RunConfig:
    """The config in a run's folder, also before its first checkpoint.

    Raises: CheckpointError when there is none, or it is not one of this release.
    """
    file = run / "config.yaml"
    if not file.exists():
        return read_run_config(run)
    try:
        return RunConfig.model_validate(yaml.safe_load(read_regular(file).decode()))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {why(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{file} is no config of this release: {error}") from error


def _masks(config: RunConfig, folder: Path) -> list[Picture]:
    reader = ClipReader(config.data.sources[0].shards, config.data.split)
    clips = [_view(reader, index, config) for index in of_different_videos(reader, NUM_CLIPS)]
    return [draw_masks(clips, config, kind, folder) for kind in range(len(config.objective.masks))]


def of_different_videos(reader: ClipReader, count: int) -> list[int]:
    """Clips from all over a split, of as many different videos as can be found with a few looks."""
    looks = np.unique(np.linspace(0, len(reader) - 1, 8 * count).astype(int)).tolist()
    firsts = {reader.meta(index).video_id: index for index in reversed(looks)}
    chosen = list(reversed(firsts.values()))[:count]
    return sorted([*chosen, *[index for index in looks if index not in chosen][: count - len(chosen)]])


def draw_masks(clips: Sequence[Pixels], config: RunConfig, kind: int, folder: Path) -> Picture:
    """Rows of clips, hidden tokens under a shade of the mask kind's colour.

    clips: uint8 (T, H, W, 3) each, as the encoder sees them.
    """
    mask: MaskConfig = config.objective.masks[kind]
    colour = np.array([int(COLOURS[kind % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5)])
    rows, shares = [], []
    for number, clip in enumerate(clips):
        hidden = hidden_in(mask, config.grid, stream(config.seed, "mask-picture", kind, number), None)
        shares.append(hidden.mean())
        frames = spread(len(clip), NUM_FRAMES)
        rows.append(
            [shade(scale(clip[f]), hidden[f // config.model.encoder.tubelet], colour) for f in frames]
        )
    path = folder / f"masks-{kind + 1}.png"
    sheet_of([""] * len(rows), rows).save(path, optimize=True)
    return Picture(
        path,
        f"Masks of kind {kind + 1}",
        f"{_in_words(mask)}: {np.mean(shares):.0%} of the tokens are hidden here. The encoder sees what is "
        f"clear, and the predictor says what is shaded.",
    )


def _in_words(mask: MaskConfig) -> str:
    if isinstance(mask, BlockMaskConfig):
        blocks = f"{mask.blocks} blocks" if mask.blocks > 1 else "1 block"
        area, length = _percent(mask.spatial_scale), _percent(mask.temporal_scale)
        return f"{blocks} of {area} of the picture, through {length} of the clip"
    if isinstance(mask, FutureMaskConfig):
        return f"the past, {_percent(mask.past)} of the clip, is seen"
    return f"{mask.hidden:.0%} of the places, through the whole clip"


def _percent(share: tuple[float, float]) -> str:
    low, high = share
    return f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"


def shade(frame: Pixels, hidden_hw: NDArray[np.bool_], colour: NDArray[np.int64]) -> Pixels:
    """A frame with its hidden tokens dimmed toward `colour`, and an outline around them."""
    side = frame.shape[0]
    grid = hidden_hw.shape
    rows = np.minimum(np.arange(side) * grid[0] // side, grid[0] - 1)
    columns = np.minimum(np.arange(side) * grid[1] // side, grid[1] - 1)
    inside = hidden_hw[rows][:, columns]
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] & ~inside[:-1]
    edge[:-1] |= inside[:-1] & ~inside[1:]
    edge[:, 1:] |= inside[:, 1:] & ~inside[:, :-1]
    edge[:, :-1] |= inside[:, :-1] & ~inside[:, 1:]
    shown = frame.astype(np.float32)
    shown[inside] = 0.22 * shown[inside] + 0.78 * (0.75 * colour)
    shown[edge] = colour
    return shown.astype(np.uint8)


def _features(run: Path, config: RunConfig) -> Picture:
    trained, config, step = load_encoder(run)
    reader = list(open_splits(config.data.sources[0].shards).values())[-1]
    clip = _view(reader, 0, config)
    encoders = {"trained": trained, "untrained": untrained_encoder(config)}
    return draw_features(clip, encoders, config, step, run / FOLDER)


@torch.inference_mode()
def draw_features(
    clip: Pixels, encoders: dict[str, Encoder], config: RunConfig, step: int, folder: Path
) -> Picture:
    """A clip, below it the three strongest directions of each encoder's tokens as red, green and blue."""
    tubelet = config.model.encoder.tubelet
    chosen = [f // tubelet for f in spread(len(clip), min(NUM_FRAMES, config.grid[0]))]
    rows = [[scale(clip[t * tubelet]) for t in chosen]]
    shares = []
    for encoder in encoders.values():
        tokens_ND = encoder(normalise(torch.from_numpy(clip)[None]))[0].float().numpy()
        colours, share = pca_colours(tokens_ND)
        shares.append(share)
        frames = (255 * colours.reshape(*config.grid, 3)).astype(np.uint8)
        rows.append([scale(frames[t], smooth=False) for t in chosen])
    path = folder / "features.png"
    sheet_of(["clip", *encoders], rows).save(path, optimize=True)
    said = ", ".join(
        f"{share:.0%} of the variance when {name}" for name, share in zip(encoders, shares, strict=True)
    )
    return Picture(
        path,
        "Features of one clip",
        f"Rows from above: {', '.join(['clip', *encoders])}. Each square is a token at step {step}; the "
        f"three strongest directions of all the clip's tokens are red, green and blue ({said}). Each encoder "
        f"has its own directions, scaled over the whole clip.",
    )


def pca_colours(tokens_ND: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Tokens to colours in [0, 1] (N, 3) by their first three principal components, and their share.

    Each component is spread from its 2nd to its 98th percentile; its sign makes the largest value positive.
    """
    centred = tokens_ND.astype(np.float64) - tokens_ND.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    found = left[:, :3] * singular[:3]
    parts = np.zeros((len(tokens_ND), 3))
    parts[:, : found.shape[1]] = found
    parts *= np.where(parts.max(0) >= -parts.min(0), 1.0, -1.0)
    low, high = np.percentile(parts, [2, 98], axis=0)
    spread = np.where(high - low > 1e-9, high - low, np.inf)
    share = float((singular[:3] ** 2).sum() / max(float((singular**2).sum()), 1e-24))
    return np.clip((parts - low) / spread, 0, 1), share


def _neighbours(run: Path, config: RunConfig) -> list[Picture]:
    """Clips of real videos and their nearest others, from the examples that the probe wrote down."""
    examples = (read_probe(run) or {}).get("examples", [])
    if not examples:
        return []
    root = config.probe.data or config.data.sources[0].shards
    readers: dict[str, ClipReader] = {}

    def frame(clip: dict[str, Any]) -> Pixels:
        reader = readers.setdefault(clip["split"], ClipReader(root, clip["split"]))
        found = _view(reader, clip["index"], config)
        return scale(found[len(found) // 2])

    rows = []
    for example in examples:
        query = example["query"]
        near = [
            framed(frame(other), RIGHT if other["video"] == query["video"] else WRONG)
            for other in example["nearest"]
        ]
        rows.append([framed(frame(query), GREY), *near])
    path = run / FOLDER / "neighbours.png"
    sheet_of(["clip"] * len(rows), rows).save(path, optimize=True)
    caption = (
        "Left a clip, beside it the nearest others by the trained encoder's features, nearest first; "
        "green is the same video, red another."
    )
    return [Picture(path, "Nearest neighbours", caption)]


def _view(reader: ClipReader, index: int, config: RunConfig) -> Pixels:
    clip = reader.read_for(config.data, index)
    view: Pixels = eval_view(clip.frames_THWC, config.data.size).numpy()
    return view
