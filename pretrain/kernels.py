"""What computes a run: the attention of each stack, and whether blocks are compiled. The same on all ranks.

Rank 0 times attention; what it took is written into the run's folder, and a run that is resumed goes on with
it where it works, as another one rounds differently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from data_pipeline.errors import UsageError
from data_pipeline.storage import write_whole
from pretrain.config import RunConfig
from pretrain.config.objective import ActionLatentConfig, FutureLatentConfig, StatesConfig
from pretrain.masks import Masks, sample_masks
from pretrain.model.attention import Backend
from pretrain.model.choose import Chosen, Rows, choose, why_not
from pretrain.model.compiling import COMPILER, BlockForm, why_not_compiled
from pretrain.strategy.base import World

ATTENTION_FILE = "attention.json"
DRAWN_BATCHES = 4
ENCODER, PREDICTOR, TARGET = "encoder", "predictor", "target"


@dataclass(frozen=True)
class Kernels:
    """attention: of `encoder`, `predictor` and `target`. compiler: of blocks, None where they are not.

    sentences: what a person is told of it.
    """

    attention: Mapping[str, Backend] = field(default_factory=dict)
    compiler: str | None = None
    sentences: tuple[str, ...] = ()


def kernels_for(config: RunConfig, world: World, run: Path | None = None) -> Kernels:
    """What is asked for by the config, or found out on this machine; every rank calls it.

    run: the folder that keeps what was timed.
    Raises, on every rank: UsageError when what is asked for by name does not work on one of them.
    """
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    rows = stack_rows(config)

    def first_chooses() -> dict[str, Chosen] | None:
        if not world.is_first:
            return None
        return choose(config.model.attention, rows, world.device, dtype, kept(run))

    chosen = world.together(first_chooses)[0]
    assert chosen is not None, "the first rank answers"
    attention = {name: each.backend for name, each in chosen.items()}
    world.together(lambda: _check_here(attention, rows, world, dtype))
    if any(each.ms for each in chosen.values()):
        world.together(lambda: _keep(run, chosen, rows, world, dtype))
    sentences = [each.sentence(name) for name, each in chosen.items() if each.ms]
    stack = ENCODER if ENCODER in rows else TARGET
    compiler, said = _compiler(config, world, dtype, rows[stack].lengths, attention[stack])
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # what was tried held whole rows
    return Kernels(attention, compiler, (*sentences, *said))


def stack_rows(config: RunConfig) -> dict[str, Rows]:
    """What each stack of a run attends over, in a micro-batch as training draws it."""
    width, _, heads, _ = config.model.encoder.shape
    inner, objective = config.model.predictor, config.objective
    clips, tokens, moments = config.train.micro_batch, math.prod(config.grid), config.grid[0]
    frame = tokens // moments

    def outer(lengths: tuple[int, ...], *, goes_backward: bool = True) -> Rows:
        return Rows(lengths, heads, width // heads, goes_backward)

    def inside(lengths: tuple[int, ...], frame: int | None = None) -> Rows:
        return Rows(lengths, inner.heads, inner.width // inner.heads, True, frame)

    if isinstance(objective, ActionLatentConfig):
        told = frame + 1 + bool(objective.state_size)
        lengths = ((config.data.frames - 1) * told,) * clips
        single = outer((frame,) * (clips * config.data.frames), goes_backward=False)
        return {PREDICTOR: inside(lengths, told), TARGET: single}
    if isinstance(objective, StatesConfig):
        whole = (tokens,) * clips
        return {ENCODER: outer(whole), TARGET: outer(whole, goes_backward=False)}
    drawn = [_drawn(config, batch) for batch in range(DRAWN_BATCHES)]
    kept = _typical([masks.kept_lengths for masks in drawn])
    if isinstance(objective, FutureLatentConfig):
        told = frame + bool(objective.action_size)
        hidden = _typical([masks.hidden_lengths for masks in drawn])
        seen = hidden if objective.target_sees == "future" else (tokens,) * clips
        lengths = (moments * told,) * clips
        return {
            ENCODER: outer(kept),
            PREDICTOR: inside(lengths, told),
            TARGET: outer(seen, goes_backward=False),
        }
    whole = _typical(
        [
            tuple(a + b for a, b in zip(masks.kept_lengths, masks.hidden_lengths, strict=True))
            for masks in drawn
        ]
    )
    seen = (tokens,) * clips
    if config.model.encoder.pictures == "own" and clips > 1:
        seen = (frame, *seen[1:])  # of clips among which there may be a picture
    return {ENCODER: outer(kept), PREDICTOR: inside(whole), TARGET: outer(seen, goes_backward=False)}


def _drawn(config: RunConfig, batch: int) -> Masks:
    clips, objective = config.train.micro_batch, config.objective
    places = range(batch * clips, (batch + 1) * clips)
    return sample_masks(objective.masks, config.grid, config.seed, batch, places, truncate=objective.truncate)


def _typical(lengths: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Those of a batch whose sequences differ, if there is one: equal ones may be chance."""
    return next((each for each in lengths if len(set(each)) > 1), lengths[0])


def _check_here(
    attention: Mapping[str, Backend], rows: Mapping[str, Rows], world: World, dtype: torch.dtype
) -> None:
    """What rank 0 took works on this rank too. Raises: UsageError."""
    if world.is_first or world.device.type != "cuda":
        return
    for name, backend in attention.items():
        reason = why_not(backend, world.device, dtype, rows[name])
        if reason is not None:
            raise UsageError(
                f"attention of {name} is {backend} on the first rank and does not work on rank "
                f"{world.rank}: {reason}; model.attention=sdpa works everywhere"
            )


def kept(run: Path | None) -> dict[str, Backend]:
    """What a run's folder says was timed and taken; nothing where there is no such file, or a damaged one."""
    try:
        plain = json.loads((run / ATTENTION_FILE).read_bytes()) if run is not None else {}
        stacks = plain.get("stacks", {})
        taken = {name: stacks[name]["backend"] for name in stacks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: backend for name, backend in taken.items() if backend in get_args(Backend)}


def _keep(
    run: Path | None,
    chosen: Mapping[str, Chosen],
    rows: Mapping[str, Rows],
    world: World,
    dtype: torch.dtype,
) -> None:
    """The first rank writes what was timed down, beside the rows it was timed on."""
    if run is None or not world.is_first:
        return
    device = world.device
    stacks: dict[str, Any] = {
        name: {
            "backend": each.backend,
            "ms": {other: round(ms, 4) for other, ms in each.ms.items()},
            "refused": dict(each.refused),
            "sequences": len(rows[name].lengths),
            "tokens": sum(rows[name].lengths),
            "longest": max(rows[name].lengths),
            "heads": rows[name].heads,
            "head_width": rows[name].head_width,
            "goes_backward": rows[name].goes_backward,
        }
        for name, each in chosen.items()
    }
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": str(torch.__version__),
        "precision": str(dtype).removeprefix("torch."),
        "stacks": stacks,
    }
    write_whole(run / ATTENTION_FILE, (json.dumps(found, indent=1) + "\n").encode())


def _compiler(
    config: RunConfig, world: World, dtype: torch.dtype, lengths: tuple[int, ...], backend: Backend
) -> tuple[str | None, list[str]]:
    """The compiler of blocks on every rank, or None, and what is told of it.

    lengths, backend: of an encoder.
    """
    wanted = config.train.compile
    if wanted == "none" or (wanted == "auto" and world.device.type != "cuda"):
        return None, []
    if config.strategy.kind == "deepspeed" and config.strategy.zero_stage == 3:
        return None, ["blocks are not compiled: ZeRO-3 brings their weights in hooks, amid what would be"]
    width, _, heads, ratio = config.model.encoder.shape
    rotates = config.model.encoder.rope != "none"
    form = BlockForm(width, heads, ratio, dtype, lengths, backend, rotates)

    def try_it() -> str | None:
        reason = why_not_compiled(form, world.device, COMPILER)
        if reason is not None and wanted == "blocks":
            raise UsageError(
                f"train.compile is blocks, and torch.compile does not work here: {reason}; set "
                f"train.compile=auto, which goes on without"
            )
        return reason

    reasons = [reason for reason in world.together(try_it) if reason is not None]
    if reasons:
        return None, [f"blocks are not compiled, as torch.compile does not work here: {reasons[0]}"]
    return COMPILER, ["blocks are compiled by torch.compile; train.compile=none is without"]
