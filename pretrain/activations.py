"""Bytes of activations that a rank holds during a step: what autograd saves, and what works on it.

A step's memory is at its most in one of a few moments: the target encoder reads; the forward has just ended;
the loss, the predictor's last block, or the context encoder's last block goes backward; all gradients are
there. Weights, their gradients and the optimizer are in `pretrain/memory.py`. Counted are tensors; what
allocators round up, libraries keep and fused operations use inside is not.
Held against torch's own tensors in tests/pretrain/test_activations.py.

Shapes: B clips, N tokens a clip, M kept tokens, P hidden tokens, T tokens of the predictor, D width of the
encoder, O of a prediction, E of the predictor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pretrain.config import RunConfig
from pretrain.config.objective import (
    ActionLatentConfig,
    ContrastiveConfig,
    FutureLatentConfig,
    PixelConfig,
    StatesConfig,
)
from pretrain.flops import Stack, encoder_stack, predictor_stack
from pretrain.mask_lengths import most_kept_and_hidden
from pretrain.masks import Masks
from pretrain.saved import FLOAT, INDEX, Pass, Row, block, read, row_of, saved, worked


@dataclass(frozen=True)
class Activations:
    """Bytes alive at each moment of a forward and backward, but for the clips themselves.

    target: while the target encoder reads. forward: when the forward ends. loss, predictor, encoder: while
    that goes backward, the last block of each stack; first: the first block, which is the last to go. kept:
    until the next micro-batch (targets, predictions, what health looks at).
    clips: of the batch, float32, and on a GPU of the next one, which is brought meanwhile.
    """

    target: float
    forward: float
    loss: float
    predictor: float
    encoder: float
    first: float
    kept: float
    clips: float

    @property
    def most(self) -> float:
        """The clips with it."""
        return self.clips + max(
            self.target, self.forward, self.loss, self.predictor, self.encoder, self.first, self.kept
        )


def pass_of(config: RunConfig, device: str) -> Pass:
    """How a run computes on `device`, cpu or cuda, as far as its memory goes."""
    attention: str = config.model.attention
    if attention == "auto":  # the fastest on CUDA, of which all but SDPA are packed
        attention = "varlen" if device == "cuda" else "segments"
    is_packed = attention.startswith(("varlen", "xformers"))
    return Pass(
        width=2 if config.train.precision == "bf16" else FLOAT,
        on_cpu=device == "cpu",
        is_packed=is_packed,
        rotates=config.model.encoder.rope != "none",
        attention=attention,
    )


def activations(config: RunConfig, masks: Masks, device: str) -> Activations:
    """Of one forward and backward over the clips of these masks, on one rank of `device`, cpu or cuda."""
    objective, how = config.objective, pass_of(config, device)
    frames, size = config.data.frames, config.data.size
    clips = masks.num_clips * 3 * frames * size**2 * FLOAT * (2 if device == "cuda" else 1)
    if isinstance(objective, ActionLatentConfig):
        found = _action(config, objective, masks.num_clips, how)
    elif isinstance(objective, FutureLatentConfig):
        found = _future(config, objective, masks, how)
    elif isinstance(objective, StatesConfig):
        found = _states(config, objective, masks.num_clips, how)
    else:
        found = _hidden(config, masks, how)
    return found.moments(clips)


def most_activations(config: RunConfig, device: str) -> Activations:
    """Of a forward and backward over the largest micro-batch that masks may draw, moment by moment.

    What a moment holds grows with tokens that are kept, or with those that are hidden: it is the larger of
    the two ends. The same at every call; see pretrain/mask_lengths.py for what bounds the masks.
    """
    masks = most_kept_and_hidden(config.objective.masks, config.grid, config.train.micro_batch)
    found = [activations(config, each, device) for each in masks]
    return Activations(*(max(getattr(each, field.name) for each in found) for field in fields(Activations)))


@dataclass(frozen=True)
class _Alive:
    """Bytes by who keeps them. encoder, predictor: what autograd saves in each; loss: and in the loss.

    *_work: what their backward takes beside. kept: by the output and the targets.
    """

    target: float
    encoder: float
    predictor: float
    loss: float
    encoder_work: float
    predictor_work: float
    loss_work: float
    kept: float
    first: float = 0.0

    def moments(self, clips: float) -> Activations:
        inside = self.encoder + self.kept
        return Activations(
            target=self.target,
            forward=inside + self.predictor + self.loss,
            loss=inside + self.predictor + self.loss + self.loss_work,
            predictor=inside + self.predictor + self.predictor_work,
            encoder=inside + self.encoder_work,
            first=self.kept + self.first,
            kept=self.kept,
            clips=clips,
        )


def last_gradients(config: RunConfig) -> int:
    """Weights whose gradients are not there yet when the first block's backward is at its most."""
    if not config.target.stop_gradient:
        return 0  # it goes backward twice
    frozen = isinstance(config.objective, ActionLatentConfig)
    stack = predictor_stack(config) if frozen else encoder_stack(config)
    embedding = config.model.encoder.shape[0] if frozen else _pixels(config)
    return stack.width * (4 * stack.width + stack.hidden + embedding)


def _pixels(config: RunConfig) -> int:
    """Numbers that a token is embedded from."""
    encoder = config.model.encoder
    return 3 * encoder.tubelet * encoder.patch**2


def _read(config: RunConfig, row: Row, clips: int, tokens: int, how: Pass) -> float:
    """The target encoder over `row`: embedding, a block, or the features it gives, whichever takes most."""
    stack, levels = encoder_stack(config), config.model.encoder.num_levels
    cast = 2 if how.width != FLOAT else 0  # clips are float32
    embedded = clips * tokens * (_pixels(config) * (how.width + cast) + stack.width * how.width)
    wide = row.tokens * stack.width
    taken = (levels - 1) * wide * how.width
    given = wide * (how.width + levels * (how.width + 2 * FLOAT))
    return max(embedded, taken + read(stack, row, how), given)


def _encoder(config: RunConfig, row: Row, embedded: float, how: Pass) -> float:
    """What the context encoder saves. embedded: tokens whose pixels are; `row` of them go through blocks."""
    stack, encoder = encoder_stack(config), config.model.encoder
    levels: float = 2 * FLOAT * row.tokens * (encoder.num_levels - 1)
    if how.residual != how.width:  # else a level's norm saves what the next block does
        levels += (encoder.num_levels - 1) * row.tokens * stack.width * FLOAT
    return saved(stack, row, how) + embedded * _pixels(config) * how.width + INDEX * row.tokens + levels


def _first(stack: Stack, row: Row, embedded: float, config: RunConfig, how: Pass) -> float:
    """What is alive beside what is kept when a stack's first block goes backward, computed again or not."""
    gradient = row.tokens * (stack.hidden + stack.width) * how.width
    return block(stack, row, how) + gradient + embedded * _pixels(config) * how.width


def _reads_own(config: RunConfig) -> bool:
    """Whether the context encoder reads what is to be guessed."""
    return config.target.kind == "online" or not config.target.stop_gradient


def _own_target(
    config: RunConfig,
    reading: float,
    context: float,
    predictor: float,
    row: Row,
    seen: Row,
    clips: int,
    how: Pass,
) -> tuple[float, float, Row]:
    """(target, encoder, row of the last backward) where the context encoder reads its own targets, `seen`.

    It does so in the midst of the forward, when all is saved; without a stop, what it reads is saved too.
    """
    if config.target.stop_gradient:
        return reading + context + predictor, context, row
    rounded = FLOAT if how.width != FLOAT else 0
    given = seen.tokens * config.model.encoder.shape[0] * config.model.encoder.num_levels * (FLOAT + rounded)
    tokens = clips * math.prod(config.grid)
    averaged = reading if config.target.kind == "ema" else 0.0
    return averaged, context + _encoder(config, seen, tokens, how) + given, seen


def _hidden(config: RunConfig, masks: Masks, how: Pass) -> _Alive:
    """The objectives over masked clips."""
    encoder, objective = config.model.encoder, config.objective
    outer, inner = encoder_stack(config), predictor_stack(config)
    kept, hidden = sum(masks.kept_lengths), sum(masks.hidden_lengths)
    clips, tokens, levels, w = masks.num_clips, masks.num_tokens, encoder.num_levels, how.width
    row = row_of(masks.kept_lengths)
    whole = row_of(a + b for a, b in zip(masks.kept_lengths, masks.hidden_lengths, strict=True))
    frame = tokens // config.grid[0]
    present = row_of(
        frame if is_picture and encoder.pictures == "own" else tokens for is_picture in masks.pictures
    )
    is_pixel = isinstance(objective, PixelConfig)
    says_context = getattr(objective, "context_loss", None) is not None
    given = _pixels(config) if is_pixel else outer.width * levels

    rounded = FLOAT if w != FLOAT else 0  # float32 copies of what is computed in bf16
    # Targets of all tokens and of the hidden ones, predictions, features that health looks at, and places.
    copies = clips * tokens * given * FLOAT + (0 if is_pixel else present.tokens * outer.width * FLOAT)
    said = hidden * given * (FLOAT + w + rounded) + says_context * kept * given * w
    places = INDEX * (2 * kept + 3 * hidden + (0 if is_pixel else present.tokens))
    held: float = copies + said + kept * outer.width * levels * w + places

    kinds = config.model.predictor.mask_tokens or len(objective.masks)
    asked = hidden * (inner.width + kinds) * w + says_context * kept * inner.width * w
    between: float = (2 * kept * outer.width if levels > 1 else 0) * w
    if encoder.pictures == "own":
        between += 2 * (kept + whole.tokens) * w
    predictor = saved(inner, whole, how) + asked + between + 2 * INDEX * whole.tokens

    loss = hidden * given * (rounded if is_pixel else FLOAT) + says_context * kept * given * FLOAT
    loss_work = 2 * hidden * given * FLOAT
    if isinstance(objective, ContrastiveConfig):
        told = min(hidden, objective.tokens)
        loss = told * (4 * given * FLOAT + told * (FLOAT + 1))
        loss_work = 2 * told**2 * FLOAT
    reading = 0.0 if is_pixel else _read(config, present, clips, tokens, how)
    context = _encoder(config, row, clips * tokens, how)
    last = row
    if _reads_own(config) and not is_pixel:
        reading, context, last = _own_target(config, reading, context, predictor, row, present, clips, how)
    return _Alive(
        target=reading,
        encoder=context,
        predictor=predictor,
        loss=loss,
        encoder_work=worked(outer, last, how),
        predictor_work=worked(inner, whole, how),
        loss_work=loss_work,
        kept=held,
        first=_first(outer, last, clips * tokens, config, how),
    )


def _future(config: RunConfig, objective: FutureLatentConfig, masks: Masks, how: Pass) -> _Alive:
    """x-encoder over the past, predictor over all moments, y-encoder over the future or the clip."""
    outer, inner, w = encoder_stack(config), predictor_stack(config), how.width
    clips, tokens, moments = masks.num_clips, masks.num_tokens, config.grid[0]
    past, future = sum(masks.kept_lengths), sum(masks.hidden_lengths)
    row = row_of(masks.kept_lengths)
    seen = row_of(masks.hidden_lengths if objective.target_sees == "future" else (tokens,) * clips)
    frame = tokens // moments + _told(config, objective.action_size)
    whole = row_of((moments * frame,) * clips, frame)
    rounded = FLOAT if w != FLOAT else 0
    predictor = saved(inner, whole, how) + clips * tokens * (outer.width + inner.width) * w
    context, reading = _encoder(config, row, clips * tokens, how), _read(config, seen, clips, tokens, how)
    last = row
    if _reads_own(config):
        reading, context, last = _own_target(config, reading, context, predictor, row, seen, clips, how)
    errors = future * outer.width * FLOAT
    said = 2 * (future + clips * tokens) * outer.width * w  # gradients of what is said of all moments
    held = future * outer.width * (FLOAT + w + rounded) + past * outer.width * w
    held += INDEX * (2 * past + 4 * future)
    return _Alive(
        target=reading,
        encoder=context,
        predictor=predictor,
        loss=errors,
        encoder_work=worked(outer, last, how),
        predictor_work=worked(inner, whole, how),
        loss_work=max(2 * errors, said - errors),
        kept=held,
        first=_first(outer, last, clips * tokens, config, how),
    )


def _told(config: RunConfig, *sizes: int) -> int:
    """Tokens of a moment beside its patches."""
    return sum(size > 0 for size in sizes) if config.model.predictor.told == "tokens" else 0


def _action(config: RunConfig, objective: ActionLatentConfig, clips: int, how: Pass) -> _Alive:
    """A frozen encoder over single frames; the predictor over all of them, and once for each guess."""
    outer, inner, w = encoder_stack(config), predictor_stack(config), how.width
    frames, patches = config.data.frames, math.prod(config.grid[1:])
    frame = patches + _told(config, objective.action_size, objective.state_size)
    pixels = 3 * config.data.size**2 * FLOAT  # frames are copied one by one
    single = row_of((patches,) * (clips * frames))

    def one_pass(count: int) -> float:
        """What is saved of a guess from `count` frames: features in, the stack, the normed answer."""
        whole, shown = row_of((count * frame,) * clips, frame), clips * count * patches
        ends = (outer.width + inner.width) * w + (outer.width + 2) * FLOAT
        return saved(inner, whole, how) + shown * ends

    taught = clips * (frames - 1) * patches * outer.width
    rolled = clips * objective.rollout_steps * patches * outer.width
    passes = one_pass(frames - 1) + sum(one_pass(count) for count in range(2, objective.rollout_steps + 1))
    held = clips * frames * patches * outer.width * FLOAT + 2 * taught * FLOAT
    held += INDEX * clips * patches * (3 * frames)
    last = row_of((max(frames - 1, 1) * frame,) * clips, frame)
    return _Alive(
        target=_read(config, single, clips * frames, patches, how) + clips * frames * pixels,
        encoder=0.0,
        predictor=passes,
        loss=(taught + rolled) * FLOAT,
        encoder_work=0.0,
        predictor_work=worked(inner, last, how),
        loss_work=2 * taught * FLOAT,
        kept=held,
        first=_first(inner, last, 0, config, how),
    )


def _states(config: RunConfig, objective: StatesConfig, clips: int, how: Pass) -> _Alive:
    """The encoder over whole clips, and a linear layer on each tubelet's mean."""
    outer, w, tokens = encoder_stack(config), how.width, math.prod(config.grid)
    row = row_of((tokens,) * clips)
    wide, said = row.tokens * outer.width, clips * config.grid[0] * objective.num_outputs
    looked_at = row.tokens * (2 * objective.num_outputs * FLOAT + 2 * INDEX)  # told again for every token
    mean = clips * config.grid[0] * outer.width * w
    return _Alive(
        target=0.0,
        encoder=_encoder(config, row, row.tokens, how),
        predictor=mean,
        loss=2 * said * FLOAT,
        encoder_work=worked(outer, row, how),
        predictor_work=wide * (FLOAT + w if w != FLOAT else w),
        loss_work=said * FLOAT,
        kept=wide * w + looked_at,
        first=_first(outer, row, row.tokens, config, how),
    )
