"""Which clips a run reads, and how they are cropped."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import PositiveInt, Range, Section, ordered


class SourceConfig(Section):
    """One data set of a mixture."""

    shards: str = Field(description="data set folder or s3:// prefix written by `foreframe shard`")
    weight: float = Field(1.0, gt=0, le=1e6, description="its share of the clips is weight over all weights")


class DataConfig(Section):
    """Which clips, and how many frames of them, how large."""

    shards: str | Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = Field(
        description="data set folder or s3:// prefix written by `foreframe shard`; or a list of "
        "{shards: …, weight: …}, each repeated by its own epochs"
    )
    split: Literal["train", "eval"] = Field("train", description="which split of the data sets to train on")
    frames: int = Field(16, ge=1, le=1 << 16, description="frames a clip; a picture is shown in all of them")
    fps: float = Field(
        4.0, gt=0, description="frames a second that the model sees, from the clip's own clock"
    )
    size: int = Field(
        256, ge=1, le=1 << 14, description="height and width of a clip in pixels, after the crop"
    )
    short_clips: Literal["refuse", "hold"] = Field(
        "refuse",
        description="clips shorter than frames / fps: replaced as unreadable; or their last frame held",
    )
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = Field(
        "auto", description="of clips in mp4; auto is pyav, in one pass: the fastest measured"
    )
    keep_decoded: int = Field(
        1 << 30,
        ge=0,
        le=1 << 50,
        description="bytes of memory in which a rank keeps clips decoded: each of its workers, in its share "
        "of them, all clips of a data set that fits into that; 0 keeps none",
    )
    workers: int = Field(4, ge=0, description="decoding processes a rank; 0 decodes in the training process")
    prefetch: PositiveInt = Field(2, description="micro-batches that each worker keeps ready")
    timeout_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="seconds that workers may take for a batch before the run stops and names its samples; "
        "null: three quarters of strategy.timeout_s, 300 on one process",
    )
    shuffle_window: PositiveInt = Field(16, description="shards whose samples are shuffled together")
    max_bad_samples: int = Field(
        100, ge=0, description="different unreadable samples that a run replaces before it stops"
    )
    exclude: tuple[str, ...] = Field((), description="ids of samples that others stand in for")
    remote: Literal["cache", "ranges"] = Field(
        "cache",
        description="s3:// shards: brought whole to this machine's disk ahead of their use, or read "
        "sample by sample",
    )
    cache_folder: str | None = Field(
        None,
        description="where remote shards are kept, shared by the ranks of a host; null: in the system's "
        "temporary folder",
    )
    cache_bytes: PositiveInt = Field(
        64 << 30, description="limit of that folder; the shards unused for longest go first"
    )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The data sets, one or several, with their weights."""
        return (SourceConfig(shards=self.shards),) if isinstance(self.shards, str) else self.shards


class AugmentConfig(Section):
    """One random resized crop and flip for all frames of a clip."""

    crop_scale: Range = Field((0.3, 1.0), description="share of the frame's area that the crop keeps")
    crop_ratio: Range = Field((0.75, 1.35), description="aspect ratio of the crop, width over height")
    hflip: bool = Field(True, description="mirror half of the clips")

    @model_validator(mode="after")
    def _check(self) -> Self:
        ordered(self.crop_scale, "crop_scale", 1e-3, 1.0)
        ordered(self.crop_ratio, "crop_ratio", 0.1, 10.0)
        return self
