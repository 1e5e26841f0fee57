"""What a simulated world is made of: every setting, with its unit and range, as it stands in YAML."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import Section

MAX_LEAVES = 0.95
MAX_WALLS = 0.6


class World(Section):
    """A world of one object, the leaves behind it, and walls. Equal seeds move and colour the object alike
    in all worlds of one clock, push and drag, whatever their leaves, walls and recorded actions: worlds are
    compared in pairs.

    leaves says how much of what changes in a picture is distraction. At each pixel and colour take the
    variance over all frames of all videos, and average it over pixels and colours: V. Do the same for the
    same frames with the leaves held at their mean grey: V_object. Then leaves = 1 - V_object / V, the share
    of the variance that goes when the leaves go. It is counted over time and videos together, as a loss on
    pixels or a probe meets it; it leaves out what leaves hide behind the object, for nobody sees it; and
    since leaves and object are independent, nothing is counted twice. Walls are no part of it: the share is
    that of the same world without them.
    """

    size: int = Field(96, ge=32, le=512, description="Side of a frame in pixels; even.")
    fps: float = Field(16.0, ge=1, le=120, description="Frames a second.")
    duration_s: float = Field(3.0, ge=0.25, le=3600, description="Length of a video in seconds.")
    leaves: float = Field(
        0.5,
        ge=0,
        le=MAX_LEAVES,
        description="Share of the pixels' variance, over time and videos, that is leaves; 0: plain grey.",
    )
    leaves_s: float | None = Field(
        1.0,
        ge=0,
        allow_inf_nan=True,
        description="Seconds after which leaves resemble themselves by 1/e (an AR(1) process of each mode), "
        "drift apart; 0: new in every frame; null or .inf: they drift and never change.",
    )
    band: tuple[int, int] = Field(
        (1, 8),
        description="Coarsest and finest waves of the leaves, periods a frame; power falls by their square.",
    )
    drift: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Standard deviation of the leaves' drift, frame widths a second, by axis.",
    )
    drift_s: float = Field(
        2.0, gt=0, le=3600, description="Seconds after which the drift resembles itself by 1/e."
    )
    walls: float = Field(
        0.0,
        ge=0,
        le=MAX_WALLS,
        description="Share of the frame under two striped bars that stand still for the whole video, at "
        "places and in colours of its own; behind the object, which passes before them; 0: none.",
    )
    push: float = Field(
        1.6,
        ge=0,
        le=20,
        description="Standard deviation of an action, frame widths a second squared, by axis.",
    )
    drag: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Rate at which the object's velocity dies, 1/s; 0: none. From about 5 × fps on there is "
        "no velocity to remember, and an action moves the object by its 1 / fps² in a frame, or as far as "
        "the greatest speed of 1.2 frame widths a second allows.",
    )
    hold_s: float = Field(0.4, gt=0, le=3600, description="Seconds for which an action is held.")
    actions: Literal["true", "shuffled", "zero"] = Field(
        "true",
        description="What is recorded as actions: the true ones, those of another video, or zeros; frames "
        "and states are the same.",
    )

    @field_validator("actions", mode="before")
    @classmethod
    def _yaml_reads_true_as_a_boolean(cls, value: object) -> object:
        return "true" if value is True else value

    @field_validator("leaves_s")
    @classmethod
    def _for_ever_is_null(cls, value: float | None) -> float | None:
        if value is not None and math.isnan(value):
            raise ValueError("must be seconds, 0 or null")
        return None if value == math.inf else value

    @field_validator("size")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even, as H.264 with 4:2:0 colour has even sides; try {value + 1}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.band
        if not 1 <= low <= high <= self.size // 4:
            raise ValueError(
                f"band is {list(self.band)}: need [coarsest, finest] from 1 to size / 4 = {self.size // 4}, "
                f"as a wave takes four pixels at least"
            )
        if self.num_frames < 2:
            raise ValueError("duration_s × fps must be two frames at least")
        return self

    @property
    def num_frames(self) -> int:
        """Frames of a video."""
        return round(self.duration_s * self.fps)

    @property
    def dt(self) -> float:
        """Seconds from a frame to the next."""
        return 1.0 / self.fps
