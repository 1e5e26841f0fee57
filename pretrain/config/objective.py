"""What is predicted from what, and by which loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import Fraction, PositiveInt, Range, Section, ordered


class MaskConfig(Section):
    """One kind of multi-block mask: tubes that hide the union of `blocks` boxes."""

    blocks: PositiveInt = Field(description="boxes whose union is hidden and predicted")
    spatial_scale: Fraction = Field(description="share of the picture's patches that one box covers")
    temporal_scale: Fraction = Field(1.0, description="share of the clip's length that one box covers")
    ratio: Range = Field((0.75, 1.5), description="aspect ratio of a box, height over width")

    @model_validator(mode="after")
    def _check(self) -> Self:
        ordered(self.ratio, "ratio", 0.05, 20.0)
        if self.spatial_scale == 0 or self.temporal_scale == 0:
            raise ValueError("spatial_scale and temporal_scale: need more than 0, or nothing is hidden")
        return self


PUBLISHED_MASKS = (
    MaskConfig(blocks=8, spatial_scale=0.15),
    MaskConfig(blocks=2, spatial_scale=0.70),
)


class MaskedLatentConfig(Section):
    """L1 between predicted and layer-normed target features of the hidden tokens."""

    kind: Literal["masked_latent"] = "masked_latent"
    masks: Annotated[tuple[MaskConfig, ...], Field(min_length=1)] = Field(
        PUBLISHED_MASKS, description="one encoder and predictor pass a kind; the loss is their mean"
    )
