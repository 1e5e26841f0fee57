"""An encoder's config from what its tensors show; the heads, which they do not, by the published models."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import UsageError
from pretrain.config import PRESETS, EncoderConfig

# Of V-JEPA 2 and 2.1, 384 wide, and of the action-conditioned one. V-JEPA's has as many as its encoder.
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


def predictor_heads(width: int, encoder: EncoderConfig) -> int:
    """Heads of the published predictor of that width and encoder. Raises: UsageError when there is none.

    Source: num_heads of app/vjepa/utils.py in facebookresearch/jepa (V-JEPA, known by its fixed table of
    positions); pred_num_heads of the configs of facebookresearch/vjepa2.
    """
    if encoder.rope == "none":
        return encoder.shape[2]
    if width in PREDICTOR_HEADS:
        return PREDICTOR_HEADS[width]
    raise UsageError(
        f"no published predictor is {width} wide: say --predictor-heads, which tensors do not show"
    )
