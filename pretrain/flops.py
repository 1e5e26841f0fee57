"""Floating point operations of a training step, counted from the config and the tokens of its masks.

Model FLOPs are what the model itself asks for: one forward, and in what is trained twice as many backward
(the gradient of the weights and that of the input); the target encoder goes forward only. What is computed
again to save memory is not among them, so that a share of the peak (MFU) says what training gets out of a
device; hardware FLOPs have it too. Matrix products alone are counted, attention as if every token of a
sequence saw every other; norms, activations, rotations and regularisers are not.
Source: PaLM, arXiv:2204.02311, appendix B.

Shapes: B clips, N tokens a clip, M kept tokens, P hidden tokens, L tokens of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.config import RunConfig
from pretrain.config.objective import (
    ActionLatentConfig,
    ContrastiveConfig,
    FutureLatentConfig,
    PixelConfig,
    StatesConfig,
)
from pretrain.masks import Masks, sample_masks

DRAWN_CLIPS = 256
FORWARD, TRAINED = 1, 3  # how often a product is computed: forward; for two gradients too


@dataclass(frozen=True)
class Flops:
    """Operations, an addition and a multiplication each for one. recomputed: in a backward, once more."""

    model: float = 0.0
    recomputed: float = 0.0

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.model + other.model, self.recomputed + other.recomputed)

    def __truediv__(self, number: float) -> Flops:
        return Flops(self.model / number, self.recomputed / number)


class Again(NamedTuple):
    """Blocks of a stack that a backward computes again: the first `whole`, then `mlps` in their MLP alone."""

    whole: int = 0
    mlps: int = 0


class Stack(NamedTuple):
    """Blocks of one transformer. hidden: width inside their MLPs. again: what a backward computes again."""

    width: int
    depth: int
    hidden: int
    heads: int
    again: Again = Again()


Parts = dict[str, Flops]
TARGET, CONTEXT, PREDICTOR = "target encoder", "context encoder", "predictor"
EMBEDDING, HEADS, CONTRAST = "tubelet embedding", "heads and mask tokens", "telling targets apart"


def flops_of(config: RunConfig, masks: Masks) -> Flops:
    """Of one forward and backward over the clips of these masks, on one rank."""
    return sum(parts_of(config, masks).values(), Flops())


def parts_of(config: RunConfig, masks: Masks) -> Parts:
    """The same by what computes them: encoders, predictor, and what lies between."""
    objective = config.objective
    if isinstance(objective, ActionLatentConfig):
        return _action(config, objective, masks.num_clips)
    if isinstance(objective, FutureLatentConfig):
        return _future(config, objective, masks)
    if isinstance(objective, StatesConfig):
        return _states(config, objective, masks.num_clips)
    return _hidden(config, masks)


def backward_share(parts: Parts) -> float:
    """Of the time in which a step is computed: two of the three products of all that is trained."""
    whole = sum(part.model for part in parts.values())
    target = parts.get(
        TARGET, Flops()
    ).model  # forward only; one of its own that is trained is not told apart
    return 2 / 3 * (whole - target) / whole


def flops_a_clip(config: RunConfig) -> Flops:
    """The mean of a clip, over masks drawn as training draws them; the same at every call."""
    return sum(parts_a_clip(config).values(), Flops())


def parts_a_clip(config: RunConfig) -> Parts:
    """The same by what computes them."""
    objective = config.objective
    if isinstance(objective, ActionLatentConfig):
        return _action(config, objective, 1)
    if isinstance(objective, StatesConfig):
        return _states(config, objective, 1)
    # Boxes have one size a step, so many steps of one clip; what is cut depends on the whole forward.
    is_cut = objective.truncate != "none" or isinstance(objective, ContrastiveConfig)
    clips = config.train.micro_batch if is_cut else 1
    steps = max(16, DRAWN_CLIPS // clips)
    total: Parts = {}
    for step in range(steps):
        places = range(step * clips, (step + 1) * clips)
        masks = sample_masks(
            objective.masks, config.grid, config.seed, step, places, truncate=objective.truncate
        )
        total = together(total, parts_of(config, masks))
    return {part: flops / (steps * clips) for part, flops in total.items()}


def together(*several: Parts) -> Parts:
    """Part by part, in the order in which they come first."""
    found: Parts = {}
    for parts in several:
        for part, flops in parts.items():
            found[part] = found.get(part, Flops()) + flops
    return found


def linear(tokens: float, inputs: int, outputs: int, times: int = TRAINED) -> Flops:
    """A linear layer on so many tokens. times: 2 where its input takes no gradient."""
    return Flops(2.0 * times * tokens * inputs * outputs)


def blocks(stack: Stack, lengths: Iterable[int], times: int) -> Flops:
    """A stack of blocks over packed sequences of these lengths.

    What is computed again in the backward lacks the product that ends it, which no gradient asks for.
    """
    lengths = tuple(lengths)
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)
    width, hidden = stack.width, stack.hidden
    half = 2.0 * tokens * hidden * width  # one of the two products of an MLP
    forward = 2.0 * tokens * 4 * width * width + 4.0 * pairs * width + 2 * half
    again = stack.again.whole * (forward - half) + stack.again.mlps * half
    return Flops(stack.depth * times * forward, again if times >= TRAINED else 0.0)


def recomputed_of(config: RunConfig) -> tuple[Again, Again]:
    """What the backward computes again of the context encoder, and of the predictor.

    `auto` must have been settled before (pretrain/recompute.py).
    """
    strategy, depths = config.strategy, (config.model.encoder.shape[1], config.model.predictor.depth)
    assert strategy.activation_checkpointing != "auto", "settled before anything is counted"
    if not strategy.activation_checkpointing:
        return Again(), Again()
    found = strategy.recomputed_blocks
    if found is None:
        return Again(depths[0]), Again(depths[1])
    return Again(found.encoder, found.encoder_mlps), Again(found.predictor, found.predictor_mlps)


def encoder_stack(config: RunConfig) -> Stack:
    width, depth, heads, ratio = config.model.encoder.shape
    return Stack(width, depth, round(width * ratio), heads, recomputed_of(config)[0])


def predictor_stack(config: RunConfig) -> Stack:
    predictor = config.model.predictor
    again = recomputed_of(config)[1]
    return Stack(predictor.width, predictor.depth, 4 * predictor.width, predictor.heads, again)


def _encoded(
    config: RunConfig,
    name: str,
    lengths: Iterable[int],
    pictures: tuple[bool, ...],
    times: int,
    tokens: int,
) -> Parts:
    """One pass of the encoder `name`: the tubelets of all clips embedded once, the blocks over some of them.

    times: FORWARD without gradient, TRAINED with, or both added. tokens: of a clip as it is embedded.
    """
    encoder, stack = config.model.encoder, encoder_stack(config)
    lengths, width = tuple(lengths), stack.width
    embedding = times if times == FORWARD else times - 1  # no gradient of pixels is needed
    clips, stills = len(pictures), sum(pictures)
    pixels = 3 * encoder.patch**2
    embedded = Flops()
    if encoder.pictures == "own":
        embedded += linear(stills * tokens // config.grid[0], pixels, width, embedding)
        embedded += linear(sum(lengths), 2, width, embedding)  # clip or picture
        clips = 0 if stills == clips else clips
    embedded += linear(clips * tokens, pixels * encoder.tubelet, width, embedding)
    run = blocks(stack, lengths, times)
    return {name: run, EMBEDDING: embedded}


def _target_times(config: RunConfig) -> int:
    if config.target.stop_gradient:
        return FORWARD
    return TRAINED if config.target.kind == "online" else FORWARD + TRAINED


def _hidden(config: RunConfig, masks: Masks) -> Parts:
    """The objectives over masked clips: context encoder, predictor, and where there is one the target."""
    encoder, objective, stack = config.model.encoder, config.objective, predictor_stack(config)
    width, levels, clips = encoder.shape[0], encoder.num_levels, len(masks.pictures)
    kept, hidden = sum(masks.kept_lengths), sum(masks.hidden_lengths)
    whole = [a + b for a, b in zip(masks.kept_lengths, masks.hidden_lengths, strict=True)]
    context = _encoded(config, CONTEXT, masks.kept_lengths, masks.pictures, TRAINED, masks.num_tokens)
    heads = linear(kept, width, stack.width)
    if levels > 1:
        heads += linear(kept, width * levels, width)
    kinds = len(objective.masks) + (len(objective.picture_masks) if encoder.pictures == "own" else 0)
    heads += linear(hidden, config.model.predictor.mask_tokens or kinds, stack.width, 2)
    if encoder.pictures == "own":
        heads += linear(kept + hidden, 2, stack.width, 2)
    run = blocks(stack, whole, TRAINED)
    found = {**context, PREDICTOR: run}
    if isinstance(objective, PixelConfig):
        heads += linear(hidden, stack.width, 3 * encoder.tubelet * encoder.patch**2)
        return found | {HEADS: heads}
    heads += linear(hidden, stack.width, width * levels)
    if getattr(objective, "context_loss", None) is not None:
        heads += linear(kept, stack.width, width * levels)
    found[HEADS] = heads
    if isinstance(objective, ContrastiveConfig):
        told_apart = min(hidden, objective.tokens)
        times = 2 if config.target.stop_gradient else TRAINED
        found[CONTRAST] = linear(told_apart, width * levels, told_apart, times)
    frame = masks.num_tokens // config.grid[0]
    present = [frame if is_picture and encoder.pictures == "own" else masks.num_tokens
               for is_picture in masks.pictures]  # fmt: skip
    assert len(present) == clips
    times = _target_times(config)
    return together(found, _encoded(config, TARGET, present, masks.pictures, times, masks.num_tokens))


def _future(config: RunConfig, objective: FutureLatentConfig, masks: Masks) -> Parts:
    """x-encoder over the past, predictor over all moments, y-encoder over the future or the clip."""
    clips, tokens = masks.num_clips, masks.num_tokens
    moments, tubelet = config.grid[0], config.model.encoder.tubelet
    context = _encoded(config, CONTEXT, masks.kept_lengths, masks.pictures, TRAINED, tokens)
    guessed = _moments(config, clips, moments, (objective.action_size * tubelet,), TRAINED)
    seen = masks.hidden_lengths if objective.target_sees == "future" else (tokens,) * clips
    target = _encoded(config, TARGET, seen, masks.pictures, _target_times(config), tokens)
    return together(context, guessed, target)


def _action(config: RunConfig, objective: ActionLatentConfig, clips: int) -> Parts:
    """A frozen encoder over single frames, the predictor once over all and once for each guess of its own."""
    frames, patches = config.data.frames, math.prod(config.grid[1:])
    single = (False,) * (clips * frames)
    found = _encoded(config, TARGET, (patches,) * (clips * frames), single, FORWARD, patches)
    told = (objective.action_size, objective.state_size)
    found = together(found, _moments(config, clips, frames - 1, told, 2))
    for count in range(2, objective.rollout_steps + 1):
        found = together(found, _moments(config, clips, count, told, TRAINED))
    return found


def _states(config: RunConfig, objective: StatesConfig, clips: int) -> Parts:
    """The encoder over whole clips, a linear layer on each tubelet's mean."""
    tokens = math.prod(config.grid)
    found = _encoded(config, CONTEXT, (tokens,) * clips, (False,) * clips, TRAINED, tokens)
    width = config.model.encoder.shape[0]
    return found | {HEADS: linear(clips * config.grid[0], width, objective.num_outputs)}


def _moments(config: RunConfig, clips: int, moments: int, told: Iterable[int], embed_times: int) -> Parts:
    """One pass of the action-conditioned predictor. told: sizes of what each moment is told, 0 for nothing.

    embed_times: 2 where the features that come in take no gradient.
    """
    width, stack, patches = (
        config.model.encoder.shape[0],
        predictor_stack(config),
        math.prod(config.grid[1:]),
    )
    sizes = [size for size in told if size]
    tokens = len(sizes) if config.model.predictor.told == "tokens" else 0
    length = moments * (patches + tokens)
    heads = linear(clips * moments * patches, width, stack.width, embed_times)
    for size in sizes:
        heads += linear(clips * moments, size, stack.width, 2)
    heads += linear(clips * moments * patches, stack.width, width)
    run = blocks(stack, (length,) * clips, TRAINED)
    return {PREDICTOR: run, HEADS: heads}
