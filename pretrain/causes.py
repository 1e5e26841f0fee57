"""What makes features vary: the shares of their variance that the object and the leaves of a world make.

A world draws its object and its leaves independently, so that either can be exchanged alone. Half the mean
square change of a function when only the leaves are drawn anew, as a share of its variance, is the total
effect of the leaves: Jansen's estimator of Sobol's index (Saltelli and others 2010,
doi:10.1016/j.cpc.2009.09.018). It is 0 of features that have dropped the leaves, and of pixels what the
world says (`World.leaves`). No probe is fitted: nothing is missed that a probe cannot read, and nothing is
found because a probe reads even what is faint. The two shares add up to 1 where a function is one part of
each, and to more where they work together, as where the object hides leaves.

Shapes: P pairs of videos, T frames, S side of a frame, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.worlds import World, actions_of, begin, render, step
from pretrain.checkpoint import load_encoder, untrained_encoder
from pretrain.config import RunConfig
from pretrain.data.augment import eval_view, normalise
from pretrain.model.vit import Encoder
from pretrain.objective.base import normed
from pretrain.planning.measure import stride_of
from pretrain.weights.base import build_encoder
from pretrain.weights.run import run_weights

FIRST = 200_000  # number of the first pair's video, beyond those that a model was trained on
PAIRS = 64
BATCH = 32
CAUSES = ("leaves", "object")
Clips = NDArray[np.uint8]
Floats = NDArray[np.float64]
Of = Callable[[Clips], list[Floats]]
"""What is asked of clips (B, T, S, S, 3): for each thing that is asked, numbers (B, …)."""


class Crossed(NamedTuple):
    """Clips (P, T, S, S, 3) of pairs of videos: each as it is, and each with the leaves of the other."""

    one: Clips
    other: Clips
    one_before_others_leaves: Clips
    other_before_ones_leaves: Clips


def frames_of(world: World, seed: int, moving: int, leaves: int, count: int, stride: int) -> Clips:
    """Every `stride`-th frame of a world, `count` of them: (T, S, S, 3).

    The object, its actions and the walls are those of video `moving`, the leaves those of video `leaves`.
    """
    state, scene = begin(world, seed, moving)
    wind = begin(world, seed, leaves)[0]
    actions = actions_of(world, seed, moving)
    found = []
    for moment in range((count - 1) * stride + 1):
        if moment % stride == 0:
            found.append(render(replace(state, leaves=wind.leaves), scene))
        state, wind = step(world, state, actions[moment]), step(world, wind, actions[moment])
    return np.stack(found)


@lru_cache(maxsize=4)  # runs of one world follow one another, or take turns with few others
def crossed(world: World, seed: int, pairs: int, count: int, stride: int) -> Crossed:
    """Pairs of videos that no run was trained on, from their first frame."""
    rows: list[list[Clips]] = []
    for first in range(FIRST, FIRST + 2 * pairs, 2):
        a, b = first, first + 1
        which = ((a, a), (b, b), (a, b), (b, a))
        rows.append([frames_of(world, seed, *each, count, stride) for each in which])
    return Crossed(*(np.stack(clips) for clips in zip(*rows, strict=True)))


def check_causes(who: str, world: World | None, config: RunConfig) -> int:
    """Whether a run can be asked about a world; frames of the world a frame of the run.

    who: whose world it is, in words. Raises: UsageError.
    """
    if world is None or not world.leaves:
        raise UsageError(f"{who} has no leaves: features vary by the object alone; give it a world with some")
    stride, count = stride_of(world, config), config.data.frames
    if (needed := (count - 1) * stride + 1) > world.num_frames:
        raise UsageError(
            f"{who} has videos of {world.num_frames} frames, and the run sees {count} of them, every "
            f"{stride}: need a duration_s of {needed / world.fps:.3g} s"
        )
    return stride


def shares_of(clips: Crossed, of: Of) -> list[dict[str, float]]:
    """Of each thing that is asked of clips: the share of its variance by cause; nan of what never varies."""
    change: list[Floats] = []
    for start in range(0, len(clips.one), BATCH):
        one, other, crossed_one, crossed_other = (of(each[start : start + BATCH]) for each in clips)
        for row, (a, b, ab, ba) in enumerate(zip(one, other, crossed_one, crossed_other, strict=True)):
            if start == 0:
                change.append(np.zeros(3))
            leaves, moved = _apart(a, ab) + _apart(b, ba), _apart(a, ba) + _apart(b, ab)
            change[row] += (leaves, moved, _apart(a, b) + _apart(ab, ba))
    return [
        {cause: float(part / whole) if whole else math.nan for cause, part in zip(CAUSES, parts, strict=True)}
        for *parts, whole in change
    ]


def _apart(a: Floats, b: Floats) -> float:
    return float(((a - b) ** 2).sum())


def measure_causes(run: Path, world: World, *, seed: int = 0, pairs: int = PAIRS) -> dict[str, float]:
    """Shares by name, such as `features by leaves`: of a run's layer-normed features, all places of a clip
    side by side; `pooled features by leaves`: of their mean over the clip; both before training, with
    `untrained ` before the name; and `pixels by leaves`. Of what never varies there is none.

    The encoder is the one that the run's probes read (`probe.encoder`), of its newest checkpoint. seed: of
    the world's videos. Raises: UsageError when the world does not fit the run; CheckpointError.
    """
    trained, config, at_step = load_encoder(run)
    if config.probe.encoder == "context":
        trained = build_encoder(run_weights(run, at_step, of="context"))
    stride = check_causes("the world", world, config)
    clips = crossed(world, seed, pairs, config.data.frames, stride)
    found = dict(zip(("pixels",), shares_of(clips, _pixels), strict=True))
    for before, encoder in (("", trained), ("untrained ", untrained_encoder(config))):
        names = (f"{before}features", f"{before}pooled features")
        found |= zip(names, shares_of(clips, _tokens(encoder, config.data.size)), strict=True)
    return {
        f"{name} by {cause}": share
        for name, each in found.items()
        for cause, share in each.items()
        if not math.isnan(share)
    }


def _pixels(clips: Clips) -> list[Floats]:
    return [clips.astype(np.float64)]


def _tokens(encoder: Encoder, size: int) -> Of:
    @torch.inference_mode()
    def of(clips: Clips) -> list[Floats]:
        views = torch.stack([eval_view(clip, size) for clip in clips])
        tokens_BND = normed(encoder(normalise(views))).double()
        return [tokens_BND.numpy(), tokens_BND.mean(1).numpy()]

    return of
