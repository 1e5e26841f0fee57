"""What a data card tells, as records: counted in numbers.py, shown by page.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.card.charts import Histogram
from data_pipeline.config import DataConfig
from data_pipeline.format import DatasetInfo
from data_pipeline.manifest import Clip, Video
from data_pipeline.previews import Preview

STILL = 0.01  # motion below which a clip hardly moves
DARK = 0.1  # brightness below which it is dark


@dataclass(frozen=True, slots=True)
class Group:
    """Videos that share something, and their clips that are kept. num_clips: all their clips."""

    name: str
    num_videos: int
    num_kept: int
    num_clips: int
    kept_s: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """The largest groups; `rest` adds up the others, of which there are `num_rest`."""

    groups: tuple[Group, ...]
    num_rest: int = 0
    rest: Group | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """train or eval. size_bytes: of its tars."""

    name: str
    num_clips: int
    num_videos: int
    kept_s: float
    num_shards: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Label:
    name: str
    num_train: int
    num_eval: int


@dataclass(frozen=True)
class Labels:
    """most: the most frequent. num: distinct ones. eval_only: in no clip of train."""

    most: tuple[Label, ...]
    num: int
    num_unlabelled: int
    num_eval_only: int


@dataclass(frozen=True)
class Rule:
    """Clips that one rule left out; example: the first by address and time."""

    name: str
    num_clips: int
    num_videos: int
    length_s: float
    example: Clip


@dataclass(frozen=True)
class Reason:
    """Rows that failed, or were passed over, with the same words but for numbers."""

    error_class: str
    words: str
    num_videos: int
    num_clips: int
    examples: tuple[Video | Clip, ...]


@dataclass(frozen=True)
class Duplicates:
    """num: near-duplicates left out. largest: what most of them look like, and how many do."""

    num: int
    num_groups: int
    largest: tuple[Clip, int] | None


@dataclass(frozen=True)
class Distribution:
    """A histogram, and in words what is past its threshold and where the middle lies."""

    histogram: Histogram
    num: int
    quantiles: tuple[float, float, float] | None
    num_past: int | None
    setting: str = ""
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview with its clip and the name of its video."""

    preview: Preview
    clip: Clip
    name: str


@dataclass(frozen=True)
class Totals:
    """Of usable videos and their kept clips: what `findings` asks of them, as (videos, kept seconds)."""

    largest_video: tuple[str, float]
    upscaled: tuple[int, float]
    slow: tuple[int, float]
    num_vfr: int
    num_unknown_rate: int
    num_without_clips: int
    num_state_names: int
    num_action_names: int
    num_same_hash: int
    num_same_hash_across: int
    num_still: int
    num_dark: int


@dataclass(frozen=True)
class Card:
    """All that the page shows.

    num_videos: still pictures among them, of which num_pictures are usable and num_kept_pictures have a kept
    clip. length_s: of the shortest and the longest kept clip of a video.
    """

    config: DataConfig
    info: DatasetInfo
    num_videos: Mapping[str, int]
    num_clips: Mapping[str, int]
    num_pictures: int
    num_kept_pictures: int
    source_s: float
    source_bytes: int
    kept_s: float
    num_cropped: int
    length_s: tuple[float, float]
    sides: tuple[Side, ...]
    roots: tuple[str, ...]
    sources: Grouping
    formats: tuple[tuple[str, Grouping], ...]
    labels: Labels
    distributions: tuple[Distribution, ...]
    rules: tuple[Rule, ...]
    duplicates: Duplicates
    failures: tuple[Reason, ...]
    num_failures_left: int
    passed_over: tuple[Reason, ...]
    totals: Totals
    shown: tuple[Shown, ...]

    @property
    def files(self) -> str:
        """What is counted where videos are: files, where pictures are among them."""
        return "files" if self.num_pictures else "videos"
