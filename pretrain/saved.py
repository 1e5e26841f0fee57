"""Bytes that autograd saves in a stack of blocks, and what a backward through one of them takes beside.

Read off pretrain/model/vit.py: what each operation's gradient asks for. Attention saves its inputs, its
output and a number a row (fused kernels, FlashAttention, arXiv:2205.14135): never a square of tokens. The sum
a token and width is that of arXiv:2205.05198, eq. 2, without its dropouts and with what positions turn.

Shapes: M tokens of all sequences together, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.flops import Stack
from pretrain.model.attention import loops

FLOAT = 4
INDEX = 8


@dataclass(frozen=True)
class Pass:
    """How a pass is computed, as far as memory goes.

    width: bytes of an element. on_cpu: layer norms of bf16 compute in float32 there. is_packed: attention
    takes sequences of any lengths as they are (xformers, varlen), else they are laid out to the longest; or
    go one by one, where `attention` says so. rotates: positions are told by turning.
    """

    width: int
    on_cpu: bool
    is_packed: bool
    rotates: bool
    attention: str = "sdpa"

    @property
    def residual(self) -> int:
        """Bytes of an element that a layer norm saves of its input."""
        return FLOAT if self.on_cpu else self.width


class Row(NamedTuple):
    """Sequences that are run as one row of tokens. slots: tokens when all are as long as the longest.

    mask: elements of the mask that attention makes of a block, beside those of the slots.
    """

    tokens: float
    slots: float
    mask: float = 0.0
    longest: int = 0

    @property
    def is_uniform(self) -> bool:
        return self.tokens == self.slots


def row_of(lengths: Iterable[int], frame: int | None = None) -> Row:
    """frame: tokens of a moment, where moments must not see later ones."""
    lengths = tuple(lengths)
    longest = max(lengths, default=0)
    return Row(sum(lengths), longest * len(lengths), 0.0 if frame is None else longest**2, longest)


def _lays_out(row: Row, how: Pass) -> bool:
    """Whether attention works on a copy with all sequences equally long."""
    return not row.is_uniform and not how.is_packed and not _loops(row, how)


def _loops(row: Row, how: Pass) -> bool:
    """Whether attention goes sequence by sequence."""
    return loops(how.attention, row.longest, is_uniform=row.is_uniform)


def block(stack: Stack, row: Row, how: Pass) -> float:
    """What one block saves, its input with it."""
    wide = row.tokens * stack.width
    norms = 2 * (wide * (how.residual + how.width) + 2 * FLOAT * row.tokens)
    mlp = 2 * row.tokens * stack.hidden * how.width
    is_laid_out = _lays_out(row, how)
    slots = row.slots if is_laid_out else row.tokens
    # The value is a view that keeps query and key as they were alive, beside those that were turned; what is
    # laid out is a copy, and copying saves what it copied.
    inputs = (5 if how.rotates else 3) * wide + (3 * slots * stack.width if is_laid_out else 0)
    out = slots * stack.width + (wide if is_laid_out or _loops(row, how) else 0)  # and put together
    mask = (slots if is_laid_out else 0) + row.mask
    return norms + mlp + (inputs + out + mask) * how.width + FLOAT * slots * stack.heads


def mlp_again(stack: Stack, row: Row, how: Pass) -> float:
    """What a block does not save where its MLP is computed again: all inside but what goes into its norm."""
    wide = row.tokens * stack.width
    return wide * how.residual + 2 * FLOAT * row.tokens + 2 * row.tokens * stack.hidden * how.width


def block_again(stack: Stack, row: Row, how: Pass) -> float:
    """The same of a block that is computed again as a whole: all but its input."""
    return block(stack, row, how) - row.tokens * stack.width * how.width


def saved(stack: Stack, row: Row, how: Pass) -> float:
    """What a whole stack saves: its blocks, the input of the last norm and the angles; not what it gives."""
    wide = row.tokens * stack.width
    less = stack.again.whole * block_again(stack, row, how) + stack.again.mlps * mlp_again(stack, row, how)
    angles = 2 * row.tokens * (stack.width // stack.heads) * how.width if how.rotates else 0
    inside = stack.depth * block(stack, row, how) - less
    return inside + wide * how.residual + 2 * FLOAT * row.tokens + angles


def worked(stack: Stack, row: Row, how: Pass) -> float:
    """What the backward of the last block takes beside what the stack saves.

    At its most where the gradient of its MLP's hidden layer is made; what that hidden layer gave is gone. Of
    blocks that are computed again the first ones are, so that most is alive when the last goes backward:
    whichever way a block is run, it and its own part of this are as large then.
    """
    again = 0.0
    if stack.again.whole == stack.depth:
        again = block_again(stack, row, how)
    elif sum(stack.again) == stack.depth:
        again = mlp_again(stack, row, how)
    return again + row.tokens * (stack.hidden + stack.width) * how.width


def read(stack: Stack, row: Row, how: Pass) -> float:
    """What a block takes at its most where nothing is saved: in its MLP.

    What goes into the first block, into this one and out of attention is alive beside query, key and value.
    """
    alive = 9 if how.rotates else 7
    angles = 2 * row.tokens * (stack.width // stack.heads) if how.rotates else 0
    return (row.tokens * (2 * stack.hidden + alive * stack.width) + angles) * how.width
