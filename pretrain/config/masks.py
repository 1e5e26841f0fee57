"""Which tokens are kept and which are hidden."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pretrain.config.base import Fraction, Range, Section, ordered

Share = Annotated[
    Range, BeforeValidator(lambda given: (given, given) if isinstance(given, int | float) else given)
]
"""A share, or [small, large] to draw it from."""


class BlockMaskConfig(Section):
    """Tubes that hide the union of `blocks` boxes."""

    kind: Literal["blocks"] = Field("blocks", description="the union of a few boxes is hidden")
    blocks: int = Field(ge=1, le=1000, description="boxes whose union is hidden and predicted")
    spatial_scale: Share = Field(description="share of the picture's patches that one box covers, or a range")
    temporal_scale: Share = Field(
        (1.0, 1.0), description="share of the clip's length that one box covers, or a range"
    )
    ratio: Range = Field((0.75, 1.5), description="aspect ratio of a box, height over width")
    max_temporal_keep: Fraction = Field(
        1.0,
        description="share of the clip's length that may be kept, from its begin (one tubelet at least); all "
        "later is hidden",
    )
    sizes: Literal["batch", "clip"] = Field(
        "batch", description="a box's size is drawn once a step, as published, or for each clip"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        ordered(self.ratio, "ratio", 0.05, 20.0)
        for key in ("spatial_scale", "temporal_scale"):
            scale: Range = getattr(self, key)
            ordered(scale, key, 0.0, 1.0)
            if scale[0] == 0:
                raise ValueError(f"{key}: need more than 0, or nothing is hidden")
        return self


class FutureMaskConfig(Section):
    """The clip's first part is kept, all that follows is hidden."""

    kind: Literal["future"] = Field("future", description="the past is kept, the future hidden")
    past: Share = Field(
        (0.5, 0.5),
        description="share of the clip's length that is kept, or a range drawn for each clip; one tubelet "
        "at least is kept, and one hidden",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        ordered(self.past, "past", 0.0, 1.0)
        return self


class TubeMaskConfig(Section):
    """Places drawn at random, hidden through all frames."""

    kind: Literal["tubes"] = Field("tubes", description="random places are hidden through all frames")
    hidden: Fraction = Field(
        0.9, description="share of the picture's patches that is hidden; one at least is kept, and one hidden"
    )


def _blocks_unless_named(given: Any) -> Any:
    return {"kind": "blocks", **given} if isinstance(given, dict) else given


MaskConfig = Annotated[
    BlockMaskConfig | FutureMaskConfig | TubeMaskConfig,
    Field(discriminator="kind"),
    BeforeValidator(_blocks_unless_named),
]
MaskConfigs = Annotated[tuple[MaskConfig, ...], Field(min_length=1)]
Truncate = Literal["none", "raster"]

PUBLISHED_MASKS: tuple[MaskConfig, ...] = (
    BlockMaskConfig(blocks=8, spatial_scale=(0.15, 0.15)),
    BlockMaskConfig(blocks=2, spatial_scale=(0.70, 0.70)),
)
