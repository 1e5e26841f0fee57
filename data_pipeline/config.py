"""Settings of the index and shard jobs: what `configs/data/*.yaml` may hold.

`DataConfig` is frozen, complete and refuses unknown keys; it reads no file and no environment.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIB = 1 << 20
DAY_S = 86_400.0


class Section(BaseModel):
    """Base of every section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InspectConfig(Section):
    """How far an unknown file is trusted."""

    timeout_s: float = Field(
        30.0, gt=0, le=DAY_S, description="Longest a decoder may stay silent on one file or clip, in seconds."
    )
    memory_bytes: int = Field(
        2048 * MIB,
        ge=64 * MIB,
        le=1 << 50,
        description="Memory a decoder may take on top of its own start, in bytes.",
    )


class CutConfig(Section):
    """Which spans of a video become clips. A list's own spans are cut like videos of their own."""

    kind: Literal["windows", "scenes", "spans"] = Field(
        "windows",
        description="windows: spans of equal length; scenes: windows that no cut of the film runs through; "
        "spans: each span of a list is one clip, whatever its length.",
    )
    length_s: float = Field(
        2.0, ge=0.01, le=DAY_S, description="Length of a clip in seconds; of spans, the shortest."
    )
    stride_s: float = Field(
        2.0,
        ge=0.01,
        le=DAY_S,
        description="From the start of one clip to the next, in seconds; spans: not used.",
    )
    scene_threshold: float = Field(
        27.0, gt=0, description="scenes: change of content that is a cut; PySceneDetect's ContentDetector."
    )


class FilterConfig(Section):
    """Which clips are left out; each score is kept in the manifest, and null filters nothing."""

    max_black: float | None = Field(
        0.5, ge=0, le=1, description="Share of frames that may be black: 98 % of them darker than a tenth."
    )
    max_frozen: float | None = Field(
        0.95, ge=0, le=1, description="Share of frames that may equal the one before, noise apart."
    )
    min_motion: float | None = Field(
        None, ge=0, description="Least mean change of brightness in a second; 1 is from black to white once."
    )
    max_distance: int | None = Field(
        None,
        ge=0,
        le=10,
        description="Near-duplicates across the data set: perceptual hashes of 192 bits differing in at most "
        "this many; of copies encoded anew 4 finds seven in ten, 8 nine; so does it clips of a fixed camera "
        "before which nothing moves.",
    )
    crop_letterbox: bool = Field(True, description="Cut black bars off before a clip is scaled.")


class EncodeConfig(Section):
    """How a clip is written: H.264 in mp4 (closed GOPs, no B-frames) or a JPEG a frame; constant rate."""

    encoding: Literal["mp4", "jpeg"] = Field(
        "mp4",
        description="mp4: H.264; jpeg: a file a frame, 5 to 14 times the size, a third of the CPU to read.",
    )
    short_side: int = Field(256, ge=16, le=4320, description="Short side of the clip in pixels; even.")
    fps: float = Field(8.0, ge=0.1, le=240, description="Constant frame rate of the clip.")
    gop: int = Field(16, ge=1, le=10_000, description="Frames from one keyframe to the next.")
    crf: int = Field(18, ge=0, le=51, description="x264 quality: 0 lossless, 18 near transparent, 51 worst.")
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ] = Field("veryfast", description="x264 speed against size.")
    jpeg_quality: int = Field(90, ge=1, le=95, description="jpeg: 1 worst, 95 best.")

    @field_validator("short_side")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even, as H.264 with 4:2:0 colour has even sides; try {value + 1}")
        return value


class ShardsConfig(Section):
    """How clips are packed."""

    target_bytes: int = Field(
        256 * MIB,
        ge=64 * 1024,
        description="Size that one tar does not pass, unless a single clip does.",
    )


class SplitConfig(Section):
    """Which videos are kept back for evaluation; a video's clips never straddle."""

    eval_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of the videos in the eval split, drawn by video id."
    )


class RayConfig(Section):
    """Where the work runs."""

    workers: int | None = Field(None, ge=1, description="Processes; null: one for each core.")
    address: str | None = Field(None, description="A Ray cluster's address; null: Ray on this machine.")
    max_retries: int = Field(
        3, ge=0, description="Times a task is given to another worker after its own died."
    )


class DataConfig(Section):
    """One data set: where its videos are, how they are cut, encoded and packed, where it is written."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$", description="Name of the data set.")
    out: str = Field(min_length=1, description="Folder or s3:// prefix that the data set is written to.")
    sources: tuple[str, ...] = Field(
        min_length=1,
        description="Folders or s3:// prefixes (with all below them), files, globs, lists (.csv .jsonl "
        ".parquet with a column `uri`), folders of LeRobot.",
    )
    root: str | None = Field(
        None,
        description="Folder or s3:// prefix that no uri of a list may leave; null: the list's own folder.",
    )
    pictures: bool = Field(
        False,
        description="Also take still pictures (.jpg .jpeg .png .webp .bmp .tif .tiff), each as a clip of one "
        "frame.",
    )
    inspect: InspectConfig = Field(default_factory=InspectConfig, description="Limits on unknown files.")
    cut: CutConfig = Field(default_factory=CutConfig, description="Which spans become clips.")
    filters: FilterConfig = Field(default_factory=FilterConfig, description="Which clips are left out.")
    encode: EncodeConfig = Field(default_factory=EncodeConfig, description="How clips are written.")
    shards: ShardsConfig = Field(default_factory=ShardsConfig, description="How clips are packed.")
    split: SplitConfig = Field(default_factory=SplitConfig, description="Train and eval.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Where the work runs.")
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="Share of videos, and of clips, that may fail before the job does."
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def num_frames(self, length_s: float) -> int:
        """Frames in a clip of that length: length times rate, rounded to the nearest whole frame."""
        return max(1, round(length_s * self.encode.fps))

    @property
    def picture_s(self) -> float | None:
        """Seconds that a still picture stands for, those of one frame; None where pictures are refused."""
        return 1 / self.encode.fps if self.pictures else None

    def encode_fingerprint(self) -> str:
        """16 hex digits of what decides a clip's bytes once its span is given."""
        return self._digest({"encode", "filters"})

    def fingerprint(self) -> str:
        """16 hex digits of what shapes the data: not where it runs, is written, or when it gives up.

        `pictures` counts when it is on: without it the sets of earlier releases keep their fingerprint.
        """
        sections = {"name", "cut", "filters", "encode", "shards", "split"}
        return self._digest(sections | ({"pictures"} if self.pictures else set()))

    def _digest(self, sections: set[str]) -> str:
        plain = self.model_dump(mode="json", include=sections)
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
