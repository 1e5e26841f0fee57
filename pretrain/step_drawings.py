"""How pictures over steps are drawn: the same clips at each step, so that what changes is the encoder.

Shapes: C clips, T frames, S side, t h w token grid, N tokens of all clips, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.config import RunConfig
from pretrain.curves import COLOURS
from pretrain.masks import hidden_in
from pretrain.pictures import RIGHT, shade
from pretrain.rng import stream
from pretrain.sheets import GREY, Pixels, framed, scale, sheet_of, spread

NUM_FRAMES = 6
RANGE = 2.0  # standard deviations of a direction that are told apart by colour, to either side
QUERY = (230, 60, 60)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """What an encoder made of one clip at a step. clip: uint8 (T, S, S, 3); tokens (t h w, D).

    by_all, by_query: (t h w), attention of the last block that each token gets. query: which token asks.
    """

    clip: Pixels
    tokens: NDArray[np.float32]
    by_all: NDArray[np.float32]
    by_query: NDArray[np.float32]
    query: int


class StableColours:
    """Tokens to colours by their three strongest directions, turned so that they change little over steps.

    The directions of a step may come out in any order and sign, and turn into each other; drawn as they are,
    colours would jump. Each step's scores, of unit variance, are turned to lie nearest to those of the step
    before of the same tokens (orthogonal Procrustes), and always span the same range.
    """

    def __init__(self, before: Floats | None = None) -> None:
        self.scores_N3 = before

    def of(self, tokens_ND: Floats) -> tuple[NDArray[np.float64], float]:
        """Colours in [0, 1] (N, 3), and the share of the variance that the three directions have."""
        scores, share = directions(tokens_ND)
        before = self.scores_N3
        if before is not None and before.shape == scores.shape:
            left, _, right = np.linalg.svd(scores.T @ before.astype(np.float64))
            scores = scores @ (left @ right)
        self.scores_N3 = scores
        return np.clip(0.5 + scores / (2 * RANGE), 0, 1), share


def directions(tokens_ND: Floats) -> tuple[NDArray[np.float64], float]:
    """Scores on the first three principal directions (N, 3), each of variance 1 or 0, and their share.

    A direction's sign makes its largest score positive.
    """
    centred = tokens_ND.astype(np.float64) - tokens_ND.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    strongest = vectors[:, ::-1][:, :3]
    scores = np.zeros((len(centred), 3))
    scores[:, : strongest.shape[1]] = centred @ strongest
    std = scores.std(0)
    scores /= np.where(std > 1e-9, std, np.inf)
    scores *= np.where(scores.max(0) >= -scores.min(0), 1.0, -1.0)
    return scores, float(values[::-1][:3].sum() / max(float(values.sum()), 1e-24))


def draw_features(seen: Sequence[Seen], config: RunConfig, colours: StableColours) -> Image.Image:
    """Each clip, below it the three strongest directions of all clips' tokens as red, green and blue."""
    found, share = colours.of(np.concatenate([each.tokens for each in seen]))
    names, rows = [], []
    for each, of_clip in zip(seen, found.reshape(len(seen), *config.grid, 3), strict=True):
        chosen = _moments(config)
        rows.append([_frame(each.clip, t, config) for t in chosen])
        rows.append([scale((255 * of_clip[t]).astype(np.uint8), smooth=False) for t in chosen])
        names += ["clip", f"{share:.0%} of all"]
    return sheet_of(names, rows)


def draw_attention(seen: Sequence[Seen], config: RunConfig) -> Image.Image:
    """Each clip, and what the last block attends to: all tokens on average, and one, which is framed."""
    names, rows = [], []
    for each in seen:
        chosen = _moments(config)
        at = [int(place) for place in np.unravel_index(each.query, config.grid)]
        if at[0] not in chosen:
            chosen[int(np.argmin([abs(t - at[0]) for t in chosen]))] = at[0]
        frames = [_frame(each.clip, t, config) for t in chosen]
        marked = [
            outlined(frame, at[1:], config.grid[1:]) if t == at[0] else frame
            for t, frame in zip(chosen, frames, strict=True)
        ]
        rows += [marked, *(_glowing(frames, map_N, chosen, config) for map_N in (each.by_all, each.by_query))]
        names += ["clip", "by all", "by the red"]
    return sheet_of(names, rows)


def _glowing(
    frames: Sequence[Pixels], map_N: Floats, chosen: Sequence[int], config: RunConfig
) -> list[Pixels]:
    planes = map_N.reshape(config.grid)
    top = max(float(np.quantile(planes, 0.99)), 1e-12)  # so that one token that has it all hides no other
    return [glow(frame, planes[t] / top) for frame, t in zip(frames, chosen, strict=True)]


def glow(frame: Pixels, weight_hw: Floats) -> Pixels:
    """A frame in dim grey, and what has weight lit in its own colours."""
    plane = Image.fromarray(np.clip(weight_hw, 0, 1).astype(np.float32))
    weight = np.asarray(plane.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BILINEAR))[..., None]
    dim = 0.25 * frame.astype(np.float32).mean(-1, keepdims=True)
    lit = np.clip(frame.astype(np.float32) * 1.1 + 20, 0, 255)
    found: Pixels = (dim + np.clip(weight, 0, 1) * (lit - dim)).astype(np.uint8)
    return found


def outlined(frame: Pixels, at: Sequence[int], grid: Sequence[int]) -> Pixels:
    """A frame with an outline around one token."""
    found, side = frame.copy(), frame.shape[0]
    top, left = (int(place * side / count) for place, count in zip(at, grid, strict=True))
    bottom, right = (
        min(side, max(int((place + 1) * side / count), start + 6))
        for place, count, start in zip(at, grid, (top, left), strict=True)
    )
    found[top:bottom, left:right][:2] = QUERY
    found[top:bottom, left:right][-2:] = QUERY
    found[top:bottom, left:right][:, :2] = QUERY
    found[top:bottom, left:right][:, -2:] = QUERY
    return found


def draw_masks(clips: Sequence[Pixels], config: RunConfig, step: int) -> Image.Image | None:
    """A row for each kind of mask and clip, as drawn at this step; None where nothing is masked."""
    names, rows = [], []
    for kind, mask in enumerate(config.objective.masks):
        code = COLOURS[kind % len(COLOURS)]
        colour = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])
        for number, clip in enumerate(clips):
            hidden = hidden_in(mask, config.grid, stream(config.seed, "step-mask", step, kind, number), None)
            rows.append([shade(_frame(clip, t, config), hidden[t], colour) for t in _moments(config)])
            names.append(f"kind {kind + 1}: {hidden.mean():.0%}")
    return sheet_of(names, rows) if rows else None


def draw_neighbours(
    pooled_CD: Floats, thumbs: Sequence[Pixels], videos: Sequence[str], queries: Sequence[int], count: int
) -> Image.Image:
    """A row a query: the clip, and those nearest by cosine of centred clip means; green is the same video."""
    near = nearest_to(pooled_CD, queries, count)
    rows = []
    for query, others in zip(queries, near, strict=True):
        cells = [framed(thumbs[n], RIGHT) if videos[n] == videos[query] else thumbs[n] for n in others]
        rows.append([framed(thumbs[query], GREY), *cells])
    return sheet_of(["clip"] * len(rows), rows)


def nearest_to(pooled_CD: Floats, queries: Sequence[int], count: int) -> list[list[int]]:
    """The `count` clips nearest to each query by cosine of centred means, itself left out."""
    x = pooled_CD.astype(np.float64) - pooled_CD.mean(0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    found = []
    for query in queries:
        likeness = x @ x[query]
        likeness[query] = -np.inf
        found.append(np.argsort(-likeness, kind="stable")[:count].tolist())
    return found


def liveliest(clip: Pixels, config: RunConfig) -> int:
    """The token to ask what it attends to: its colour has just changed, and is unlike the rest of the clip.

    Colours are means over a token, so that noise and texture that drift do not count.
    """
    t, h, w = config.grid
    tubelet, patch = config.model.encoder.tubelet, config.model.encoder.patch
    pixels = clip[: t * tubelet, : h * patch, : w * patch].astype(np.float32)
    colour = pixels.reshape(t, tubelet, h, patch, w, patch, 3).mean((1, 3, 5))
    change = np.abs(np.diff(colour, axis=0, prepend=colour[:1])).sum(-1)
    unlike = np.abs(colour - colour.mean((0, 1, 2))).sum(-1)
    return int((change * unlike).argmax())


def _moments(config: RunConfig) -> list[int]:
    return spread(config.grid[0], NUM_FRAMES)


def _frame(clip: Pixels, moment: int, config: RunConfig) -> Pixels:
    return scale(clip[moment * config.model.encoder.tubelet])


def read_scores(path: Path) -> Floats | None:
    """Scores that an earlier step left, or None when they cannot be read: then colours begin anew."""
    try:
        with np.load(path, allow_pickle=False) as found:
            scores: Floats = found["scores"]
            return scores
    except (OSError, ValueError, KeyError):
        return None
