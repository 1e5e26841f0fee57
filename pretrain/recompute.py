"""Which blocks a backward computes again: those that free enough memory for the fewest operations.

A block gives up bytes in two ways: the inside of its MLP, for one product more, or all but its input, for
its whole forward but one product. A byte of the first costs less, so a stack's blocks go through them in this
order: the first ones' MLPs, the next, all; then the first as a whole, the next, all. Where a stack stands in
that is one number, its level; between encoder and predictor the cheapest pair of levels that fits is taken.
All of it follows from the config and the kind of device, so that every rank, and a run that goes on, finds
the same, and losses and gradients do not depend on it.
Source: selective recomputation, arXiv:2205.05198, sec. 5; the choice by a budget is ours.
"""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.errors import ConfigError
from pretrain.activations import most_activations
from pretrain.config import RecomputedConfig, RunConfig
from pretrain.config.objective import ActionLatentConfig, StatesConfig
from pretrain.flops import Again, flops_of, recomputed_of
from pretrain.mask_lengths import most_kept_and_hidden


def again_at(level: int, depth: int) -> Again:
    """What a stack of `depth` blocks computes again at `level`, 0 to 2 × depth."""
    whole = max(0, level - depth)
    return Again(whole, min(level, depth) - whole)


def with_again(config: RunConfig, encoder: Again, predictor: Again) -> RunConfig:
    """The run with exactly that computed again; none and all as they are usually written."""
    depths = config.model.encoder.shape[1], config.model.predictor.depth
    is_none, is_all = not sum(encoder + predictor), (encoder.whole, predictor.whole) == depths
    update = {
        "activation_checkpointing": not is_none,
        "activation_memory": None,
        "recomputed_blocks": None
        if is_none or is_all
        else RecomputedConfig(
            encoder=encoder.whole,
            encoder_mlps=encoder.mlps,
            predictor=predictor.whole,
            predictor_mlps=predictor.mlps,
        ),
    }
    return config.model_copy(update={"strategy": config.strategy.model_copy(update=update)})


def with_all_again(config: RunConfig) -> RunConfig:
    """All blocks of what is trained."""
    encoder, predictor = _depths(config)
    return with_again(config, Again(encoder), Again(predictor))


def fewest(config: RunConfig, fits: Callable[[RunConfig], bool]) -> RunConfig | None:
    """The run with the fewest operations computed again for which `fits` holds; None where none does.

    fits: of a run; true of one that computes more again wherever it is of one that computes less.
    """

    def at(encoder: int, predictor: int) -> RunConfig:
        return with_again(config, again_at(encoder, depths[0]), again_at(predictor, depths[1]))

    depths = _depths(config)
    masks = most_kept_and_hidden(config.objective.masks, config.grid, config.train.micro_batch)[0]
    best, least = None, float("inf")
    for predictor in range(2 * depths[1] + 1):
        if flops_of(at(0, predictor), masks).recomputed >= least:
            break
        low, high = 0, 2 * depths[0]
        if not fits(at(high, predictor)):
            continue
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(at(middle, predictor)) else (middle + 1, high)
        found = at(low, predictor)
        if (operations := flops_of(found, masks).recomputed) < least:
            best, least = found, operations
    return best


def settled(config: RunConfig, device: str) -> RunConfig:
    """The run with `activation_checkpointing: auto` decided, on ranks of `device`, cpu or cuda.

    Raises: ConfigError where activations are over the budget with all blocks computed again.
    """
    budget = config.strategy.activation_memory
    if config.strategy.activation_checkpointing != "auto" or budget is None:
        return config
    found = fewest(config, lambda each: most_activations(each, device).most <= budget)
    if found is not None:
        return found
    least = most_activations(with_all_again(config), device).most
    need = (
        f"at least {_size(least)}, which {config.train.micro_batch} clips a forward take with all blocks "
        f"computed again; or fewer clips (train.micro_batch)"
    )
    raise ConfigError("strategy.activation_memory", got=_size(budget), need=need, try_=(_size(1.01 * least),))


def blocks_again(config: RunConfig) -> str:
    """What a run computes again, in words."""
    both = recomputed_of(config)
    if not any(map(sum, both)):
        return "nothing is computed again"
    depths = config.model.encoder.shape[1], config.model.predictor.depth
    if (both[0].whole, both[1].whole) == depths:
        return "all blocks are computed again"
    told = [
        _of_stack(again, depth, name)
        for again, depth, name in zip(both, depths, ("encoder", "predictor"), strict=True)
        if not isinstance(config.objective, ActionLatentConfig if name == "encoder" else StatesConfig)
    ]
    return f"computed again: {', '.join(told)}"


def share_again(config: RunConfig) -> float:
    """Operations computed again, of the model's own, in the largest micro-batch that is planned for."""
    masks = most_kept_and_hidden(config.objective.masks, config.grid, config.train.micro_batch)[0]
    flops = flops_of(config, masks)
    return flops.recomputed / flops.model


def told(asked: RunConfig, found: RunConfig, device: str) -> str:
    """What was decided of a run that asked for `auto`, in a sentence for its start."""
    budget = asked.strategy.activation_memory
    assert budget is not None
    share = share_again(found)
    more = f", {share:.1%} more operations" if share else ""
    taken = most_activations(found, device).most
    return f"{blocks_again(found)}{more}; activations take up to {_size(taken)} of {_size(budget)} a rank"


def _of_stack(again: Again, depth: int, name: str) -> str:
    words = f"{again.whole} of {depth} {name} blocks"
    return f"{words} + {again.mlps} MLP{'s' if again.mlps > 1 else ''}" if again.mlps else words


def _depths(config: RunConfig) -> tuple[int, int]:
    """Blocks of the context encoder and of the predictor that go backward: a frozen encoder's do not, and a
    readout has none."""
    is_frozen = isinstance(config.objective, ActionLatentConfig)
    is_read_out = isinstance(config.objective, StatesConfig)
    encoder = 0 if is_frozen else config.model.encoder.shape[1]
    return encoder, 0 if is_read_out else config.model.predictor.depth


def _size(number: float) -> str:
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    unit, divisor = next((each for each in units if number >= each[1]), ("B", 1.0))
    return f"{number / divisor:.3g}{unit}"
