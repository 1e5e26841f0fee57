"""What is predicted from what, by which loss, and what keeps features from collapsing."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import PositiveInt, Section, ordered
from pretrain.config.masks import (
    PUBLISHED_MASKS,
    BlockMaskConfig,
    FutureMaskConfig,
    MaskConfig,
    MaskConfigs,
    Share,
    Truncate,
)

Weight = Annotated[float, Field(ge=0.0, le=1e6)]


class VicregConfig(Section):
    """Every dimension varies over clips, and no two say the same (arXiv:2105.04906, eq. 1 to 4)."""

    kind: Literal["vicreg"] = "vicreg"
    variance: Weight = Field(1.0, description="weight of the hinge that keeps each dimension's std above 1")
    covariance: Weight = Field(0.04, description="weight of the squared covariances of different dimensions")


class SigregConfig(Section):
    """Features are pushed to an isotropic normal distribution (LeJEPA, arXiv:2511.08544, sec. 4)."""

    kind: Literal["sigreg"] = "sigreg"
    weight: Weight = Field(0.05, description="weight of the statistic beside the prediction's loss")
    directions: int = Field(
        256, ge=1, le=1 << 16, description="random directions a step on which features are tested"
    )


RegulariserConfig = Annotated[VicregConfig | SigregConfig, Field(discriminator="kind")]


class ObjectiveSection(Section):
    """What every objective can be given."""

    regularisers: tuple[RegulariserConfig, ...] = Field(
        (),
        description="losses on the mean of each clip's context: {kind: vicreg} or {kind: sigreg}",
    )


class MaskedSection(ObjectiveSection):
    """An objective over masked clips."""

    masks: MaskConfigs = Field(
        PUBLISHED_MASKS, description="kinds of masks, each seen by the same encoder; the loss is their mean"
    )
    picture_masks: tuple[MaskConfig, ...] = Field(
        (BlockMaskConfig(blocks=10, spatial_scale=(0.15, 0.15)),),
        min_length=1,
        description="kinds of masks of pictures, where model.encoder.pictures is own",
    )
    truncate: Truncate = Field(
        "none",
        description="raster cuts the lists of a forward to the shortest, as Meta's collator does: for parity "
        "runs; it drops most of what is to be predicted of the last frames",
    )


class ContextLossConfig(Section):
    """The tokens that are seen are predicted too (V-JEPA 2.1, arXiv:2603.14482, eq. 2 and 3)."""

    weight: Weight = Field(0.5, description="of the loss on the context's tokens")
    picture_weight: Weight | None = Field(None, description="the same for pictures; null: equal")
    by_distance: bool = Field(
        True,
        description="divide each token's error by the root of its distance to the nearest hidden one",
    )
    warmup: tuple[int, int] = Field(
        (15_000, 30_000), description="steps between which the weight rises from 0, linear; [0, 0] for none"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 <= self.warmup[0] <= self.warmup[1]:
            raise ValueError(f"warmup is {list(self.warmup)}: need [first step, last step]")
        return self


class MaskedLatentConfig(MaskedSection):
    """L1 between predicted and layer-normed target features of the hidden tokens."""

    kind: Literal["masked_latent"] = "masked_latent"
    context_loss: ContextLossConfig | None = Field(
        None, description="also predict the tokens that are seen, as V-JEPA 2.1; null: as V-JEPA and V-JEPA 2"
    )


class MomentsSection(Section):
    """An objective over whole moments: nothing is cut, and a picture has none to come."""

    @property
    def picture_masks(self) -> tuple[MaskConfig, ...]:
        return ()

    @property
    def truncate(self) -> Truncate:
        return "none"


class FutureLatentConfig(ObjectiveSection, MomentsSection):
    """x-encoder sees the past, y-encoder the future; the predictor guesses y from x and the action."""

    kind: Literal["future_latent"] = "future_latent"
    past: Share = Field(
        (0.5, 0.5),
        description="share of the clip's length that x sees, or a range drawn for each clip; one tubelet at "
        "least is past, and one future",
    )
    target_sees: Literal["future", "clip"] = Field(
        "future", description="what the y-encoder is shown: the future alone, or the whole clip"
    )
    action_size: int = Field(
        0, ge=0, description="numbers that an action of the data has, told to the predictor; 0 tells it none"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        ordered(self.past, "past", 0.0, 1.0)
        return self

    @property
    def masks(self) -> tuple[MaskConfig, ...]:
        return (FutureMaskConfig(past=self.past),)


class ActionLatentConfig(MomentsSection):
    """V-JEPA 2-AC: each frame's features from those before, actions and states; the encoder is frozen."""

    kind: Literal["action_latent"] = "action_latent"
    action_size: PositiveInt = Field(7, description="numbers that an action of the data has")
    state_size: int = Field(7, ge=0, description="numbers that a state of the data has; 0 tells none")
    rollout_steps: PositiveInt = Field(
        2, description="frames guessed one from another in the second loss; the first knows all true ones"
    )
    loss: Literal["l1", "l2"] = Field(
        "l1",
        description="mean absolute error, as published, or mean squared error, which weighs what moves more "
        "than the small errors of what stands still",
    )

    @property
    def masks(self) -> tuple[MaskConfig, ...]:
        return ()


class PixelConfig(MaskedSection):
    """Masked autoencoding: the hidden tokens' pixels, the arm to compare with (arXiv:2203.12602)."""

    kind: Literal["pixel"] = "pixel"
    normalise: bool = Field(
        True, description="each token's pixels by their own mean and deviation, as published"
    )


class ContrastiveConfig(MaskedSection):
    """InfoNCE: a hidden token's target feature among those of others (arXiv:1807.03748, eq. 4)."""

    kind: Literal["contrastive"] = "contrastive"
    temperature: float = Field(0.1, ge=1e-3, le=10, description="cosine similarities are divided by it")
    tokens: int = Field(
        512,
        ge=2,
        le=1 << 16,
        description="hidden tokens of a forward that are told apart, spread evenly over clips",
    )


Scale = tuple[float, Annotated[float, Field(gt=0)]]
"""Mean and deviation."""


class StatesConfig(MomentsSection):
    """Supervised: true states, by a linear layer on each tubelet's mean feature; a ceiling for others."""

    kind: Literal["states"] = "states"
    targets: dict[str, Scale] = Field(
        {"x": (0.5, 0.21), "y": (0.5, 0.21), "vx": (0.0, 0.65), "vy": (0.0, 0.65)},
        description="states of the data to be told, by name: [mean, deviation] by which they are "
        "standardised, so that each weighs alike; the usual are those of the rendered videos",
    )
    classes: dict[str, Annotated[int, Field(ge=2, le=1000)]] = Field(
        {},
        description="states that number classes from 0, by name: how many there are, as {shape: 3}; told as "
        "a number a class, 1 or 0, standardised",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = sorted(self.targets.keys() & self.classes.keys())
        if both:
            raise ValueError(f"{', '.join(both)}: in targets and in classes; need each state once")
        if not self.targets and not self.classes:
            raise ValueError("targets and classes are empty: need a state at least, such as {x: [0.5, 0.21]}")
        return self

    @property
    def masks(self) -> tuple[MaskConfig, ...]:
        return ()

    @property
    def columns(self) -> dict[str, slice]:
        """Where each state stands among the numbers that are told."""
        sizes = dict.fromkeys(self.targets, 1) | self.classes
        ends = list(itertools.accumulate(sizes.values()))
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    @property
    def num_outputs(self) -> int:
        """Numbers that are told of each tubelet."""
        return len(self.targets) + sum(self.classes.values())


ObjectiveConfig = Annotated[
    MaskedLatentConfig
    | FutureLatentConfig
    | ActionLatentConfig
    | PixelConfig
    | ContrastiveConfig
    | StatesConfig,
    Field(discriminator="kind"),
]
