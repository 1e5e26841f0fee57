"""An encoder's config from what its tensors show; the heads, which they do not, by the published models."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import UsageError
from pretrain.config import PRESETS, EncoderConfig

# Of the published predictors: V-JEPA's, V-JEPA 2's and 2.1's are 384 wide, the action-conditioned one 1024.
PREDICTOR_HEADS = {384: 12, 1024: 16}


def encoder_config(*, width: int, depth: int, heads: int, hidden: int, **others: Any) -> EncoderConfig:
    """A preset where one fits, else the nearest with what differs laid over it.

    hidden: width of the MLP. others: further settings of EncoderConfig.
    Raises: ValueError when no preset has such an MLP.
    """
    fitting = [name for name, preset in PRESETS.items() if round(width * preset[3]) == hidden]
    if not fitting:
        ratios = ", ".join(sorted({f"{preset[3]:.4g}" for preset in PRESETS.values()}))
        raise ValueError(f"an MLP of {hidden} at width {width}: need a ratio of {ratios}")
    exact = [name for name in fitting if PRESETS[name][:3] == (width, depth, heads)]
    if exact:
        return EncoderConfig.model_validate({"preset": exact[0], **others})
    shape = {"width": width, "depth": depth, "heads": heads}
    return EncoderConfig.model_validate({"preset": fitting[0], **shape, **others})


def encoder_heads(width: int, depth: int) -> int:
    """Heads of the published encoder of that width and depth.

    Raises: UsageError when there is none: tensors do not show how many heads there are.
    """
    for known_width, known_depth, heads, _ in PRESETS.values():
        if (known_width, known_depth) == (width, depth):
            return heads
    near = [f"{name} has {preset[1]} blocks" for name, preset in PRESETS.items() if preset[0] == width]
    hint = f" ({near[0]}: was the file cut?)" if near else ""
    raise UsageError(
        f"no published encoder has width {width} and {depth} blocks{hint}: say --heads, "
        f"which tensors do not show"
    )


def predictor_heads(width: int) -> int:
    """Heads of the published predictors of that width. Raises: UsageError when there is none."""
    if width in PREDICTOR_HEADS:
        return PREDICTOR_HEADS[width]
    raise UsageError(
        f"no published predictor is {width} wide: say --predictor-heads, which tensors do not show"
    )
