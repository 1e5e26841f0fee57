"""The run model: every setting of a training run, typed, frozen, complete; and its plan for a world size.

Unknown keys, wrong types and impossible combinations are refused by pydantic; `launch/config.py`
turns what it finds into sentences with file, dotted key and the nearest valid key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Range = tuple[float, float]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _ordered(low_high: Range, key: str, low: float, high: float) -> None:
    if not low <= low_high[0] <= low_high[1] <= high:
        raise ValueError(f"{key} is {list(low_high)}: need [small, large] within [{low:g}, {high:g}]")


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
    frames: PositiveInt = Field(16, description="frames a clip; a picture is shown in all of them")
    fps: float = Field(
        4.0, gt=0, description="frames a second that the model sees, from the clip's own clock"
    )
    size: PositiveInt = Field(256, description="height and width of a clip in pixels, after the crop")
    short_clips: Literal["refuse", "hold"] = Field(
        "refuse",
        description="clips shorter than frames / fps: replaced as unreadable; or their last frame held",
    )
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = Field(
        "auto", description="of clips in mp4; auto is pyav, in one pass: the fastest measured"
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
        _ordered(self.crop_scale, "crop_scale", 1e-3, 1.0)
        _ordered(self.crop_ratio, "crop_ratio", 0.1, 10.0)
        return self


# width, depth, heads; giant has 22 heads as V-JEPA 2 (arXiv:2506.09985), gigantic as ViT-G/14.
PRESETS: dict[str, tuple[int, int, int, float]] = {
    "vit_tiny": (192, 12, 3, 4.0),
    "vit_small": (384, 12, 6, 4.0),
    "vit_base": (768, 12, 12, 4.0),
    "vit_large": (1024, 24, 16, 4.0),
    "vit_huge": (1280, 32, 16, 4.0),
    "vit_giant": (1408, 40, 22, 48 / 11),
    "vit_gigantic": (1664, 48, 26, 64 / 13),
}
Preset = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant", "vit_gigantic"]
Rope = Literal["vjepa2", "interleaved"]


class EncoderConfig(Section):
    """A pre-norm ViT over tubelets; width, depth and heads come from the preset unless given."""

    preset: Preset = Field("vit_small", description="width, depth, heads and MLP ratio by name")
    patch: PositiveInt = Field(16, description="side of a patch in pixels")
    tubelet: PositiveInt = Field(2, description="frames a token spans")
    rope: Rope = Field("vjepa2", description="3D rotary positions: as released for V-JEPA 2, or interleaved")
    width: PositiveInt | None = Field(None, description="overrides the preset's width")
    depth: PositiveInt | None = Field(None, description="overrides the preset's number of blocks")
    heads: PositiveInt | None = Field(None, description="overrides the preset's number of heads")

    @property
    def shape(self) -> tuple[int, int, int, float]:
        """width, depth, heads, MLP ratio after the overrides."""
        width, depth, heads, ratio = PRESETS[self.preset]
        return self.width or width, self.depth or depth, self.heads or heads, ratio

    @model_validator(mode="after")
    def _check(self) -> Self:
        width, _, heads, _ = self.shape
        _head_width("encoder", width, heads)
        return self


def _head_width(part: str, width: int, heads: int) -> None:
    if width % heads or (width // heads) % 2 or width // heads < 6:
        raise ValueError(
            f"{part} width {width} with {heads} heads: need an even width a head of at least 6, "
            f"so that 3D rotary positions fit"
        )


class PredictorConfig(Section):
    """A narrow ViT from context tokens and mask tokens to predicted features."""

    depth: PositiveInt = Field(12, description="number of blocks")
    width: PositiveInt = Field(384, description="width of the predictor's tokens")
    heads: PositiveInt = Field(12, description="attention heads")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _head_width("predictor", self.width, self.heads)
        return self


class ModelConfig(Section):
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    init_std: float = Field(
        0.02,
        gt=0,
        description="of the truncated normal that weights start from; as published for wide models",
    )
    attention: Literal["auto", "xformers", "sdpa"] = Field(
        "auto", description="auto probes xformers forward and backward once on CUDA, else uses SDPA"
    )


class MaskConfig(Section):
    """One kind of multi-block mask: tubes that hide the union of `blocks` boxes."""

    blocks: PositiveInt = Field(description="boxes whose union is hidden and predicted")
    spatial_scale: Fraction = Field(description="share of the picture's patches that one box covers")
    temporal_scale: Fraction = Field(1.0, description="share of the clip's length that one box covers")
    ratio: Range = Field((0.75, 1.5), description="aspect ratio of a box, height over width")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ordered(self.ratio, "ratio", 0.05, 20.0)
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


class MomentumConfig(Section):
    """Momentum of the target's moving average, ramped linearly over the run."""

    start: Fraction = Field(0.99925, description="at the first step")
    end: Fraction = Field(0.99925, description="at the last step; equal to start for a constant")


class TargetConfig(Section):
    kind: Literal["ema"] = Field("ema", description="the target encoder is a moving average of the context's")
    momentum: MomentumConfig = MomentumConfig()


class OptimConfig(Section):
    """AdamW with warm-up, then constant or cosine; biases and norms take no weight decay."""

    lr: float = Field(5.25e-4, gt=0, description="learning rate after the warm-up")
    start_lr: float = Field(0.0, ge=0, description="learning rate of the first step of the warm-up")
    final_lr: float | None = Field(None, ge=0, description="cosine end point; null keeps lr constant")
    warmup_steps: int = Field(0, ge=0, description="steps from start_lr to lr, linear")
    weight_decay: float = Field(0.04, ge=0, description="decoupled weight decay of matrices")
    final_weight_decay: float | None = Field(
        None, ge=0, description="cosine end point; null keeps it constant"
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's averages")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    clip_norm: float | None = Field(None, gt=0, description="global gradient norm limit; null for none")


class TrainConfig(Section):
    steps: PositiveInt = Field(90_000, description="optimizer steps of the run; schedules end here")
    global_batch: PositiveInt = Field(3072, description="clips a step over all ranks")
    micro_batch: PositiveInt = Field(24, description="clips a rank a forward")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of weights and activations in the passes")
    checkpoint_every: PositiveInt = Field(
        1000, description="steps between checkpoints; the last step saves too"
    )
    keep_checkpoints: PositiveInt = Field(2, description="newest whole checkpoints kept")
    log_every: PositiveInt = Field(20, description="steps between lines of metrics")
    max_skipped_steps: int = Field(20, ge=0, description="non-finite steps in a row before the run stops")
    time_limit_s: float | None = Field(
        None, gt=0, description="save and stop after so long; null for no limit"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads a rank; null shares the cores out")


class SingleConfig(Section):
    """One process, plain PyTorch: the reference the others are tested against."""

    kind: Literal["single"] = "single"
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")


class DeepSpeedConfig(Section):
    """DeepSpeed ZeRO over all ranks, with a sharded moving average of the target."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2] = Field(
        1, description="what is sharded: 0 nothing, 1 optimizer, 2 gradients too"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    timeout_s: float = Field(
        120.0, gt=0, description="a collective that takes longer ends the run: a lost peer"
    )


class HealthConfig(Section):
    """How often features are looked at, and what happens when their spread is gone."""

    every: PositiveInt = Field(50, description="steps between looks at the features")
    on_collapse: Literal["note", "warn", "stop"] = Field(
        "stop", description="what a collapse does to the run"
    )
    std_floor: Fraction = Field(
        0.1, description="collapsed when the std across samples falls below this share of the untrained one"
    )
    patience: PositiveInt = Field(3, description="looks in a row below the floor before it counts")


class ProbeConfig(Section):
    """What is read out of frozen features, always beside the untrained encoder."""

    data: str | None = Field(
        None, description="data set with train and eval splits; null: the run's own (first) data set"
    )
    train_clips: PositiveInt = Field(512, description="clips of the train split that the probe is fitted on")
    eval_clips: PositiveInt = Field(256, description="clips of the eval split that it is scored on")
    batch: PositiveInt = Field(16, description="clips a forward")


class TrackerConfig(Section):
    kind: Literal["mlflow", "jsonl"] = Field("mlflow", description="jsonl writes the run's folder only")
    experiment: str = Field("pretrain", description="MLflow experiment")
    uri: str | None = Field(None, description="MLflow address; null: mlflow.db in the run's folder")


class RunConfig(Section):
    """A whole training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder is out/name")
    seed: int = Field(0, ge=0, description="of weights, order, crops and masks")
    out: str = Field("runs", description="folder that holds the run's folder")
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: MaskedLatentConfig = MaskedLatentConfig()
    target: TargetConfig = TargetConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    strategy: Annotated[SingleConfig | DeepSpeedConfig, Field(discriminator="kind")] = DeepSpeedConfig()
    health: HealthConfig = HealthConfig()
    probe: ProbeConfig = ProbeConfig()
    tracker: TrackerConfig = TrackerConfig()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip in time, height, width."""
        encoder = self.model.encoder
        side = self.data.size // encoder.patch
        return self.data.frames // encoder.tubelet, side, side

    @property
    def batch_timeout_s(self) -> float:
        """Seconds that workers may take for a batch."""
        if self.data.timeout_s is not None:
            return self.data.timeout_s
        return 300.0 if self.strategy.kind == "single" else 0.75 * self.strategy.timeout_s

    def problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules across sections that fail: (dotted key, found, needed, values to try)."""
        found: list[tuple[str, object, str, tuple[object, ...]]] = []

        def multiple(key: str, got: int, of: int, reason: str) -> None:
            if got % of:
                near = tuple(sorted({max(1, got // of) * of, (got // of + 1) * of}))
                found.append((key, got, f"a multiple of {reason} = {of}", near))

        addresses = [("tracker.uri", self.tracker.uri)]
        addresses += [("data.shards", source.shards) for source in self.data.sources]
        for key, address in addresses:
            if address is not None and "@" in address.partition("://")[2].partition("/")[0]:
                need = "an address without user name and password: they belong in the environment"
                found.append((key, "(an address with credentials)", need, ()))
        multiple("data.size", self.data.size, self.model.encoder.patch, "model.encoder.patch")
        multiple("data.frames", self.data.frames, self.model.encoder.tubelet, "model.encoder.tubelet")
        if self.data.size < 2 * self.model.encoder.patch:
            need = (
                f"at least two patches of {self.model.encoder.patch} pixels a side, or masks hide everything"
            )
            found.append(("data.size", self.data.size, need, (2 * self.model.encoder.patch,)))
        if self.train.global_batch < self.train.micro_batch:
            need = f"at least train.micro_batch = {self.train.micro_batch}"
            found.append(("train.global_batch", self.train.global_batch, need, (self.train.micro_batch,)))
        else:
            multiple(
                "train.global_batch", self.train.global_batch, self.train.micro_batch, "train.micro_batch"
            )
        if self.strategy.kind == "deepspeed" and self.batch_timeout_s >= self.strategy.timeout_s:
            need = (
                f"less than strategy.timeout_s = {self.strategy.timeout_s:g}, or the other ranks give up "
                f"before the one that waits can say for what"
            )
            found.append(("data.timeout_s", self.data.timeout_s, need, (0.75 * self.strategy.timeout_s,)))
        if self.optim.warmup_steps > self.train.steps:
            need = f"at most train.steps = {self.train.steps}"
            found.append(("optim.warmup_steps", self.optim.warmup_steps, need, (self.train.steps // 10,)))
        if (
            self.strategy.kind == "deepspeed"
            and self.strategy.zero_stage == 0
            and self.train.precision == "bf16"
        ):
            need = "1 or 2 with train.precision bf16 (stage 0 keeps no fp32 master copy)"
            found.append(("strategy.zero_stage", 0, need, (1,)))
        if self.strategy.kind == "single" and self.train.precision == "bf16":
            need = "fp32 with strategy.kind single (it keeps no fp32 master copy)"
            found.append(("train.precision", "bf16", need, ("fp32", "strategy.kind=deepspeed")))
        return found


@dataclass(frozen=True)
class Plan:
    """A run config laid out over a world: what the loop counts by.

    micro_batches: forwards a rank does a step. rank_batch: clips a rank sees a step.
    """

    config: RunConfig
    world_size: int
    micro_batches: int

    @property
    def steps(self) -> int:
        return self.config.train.steps

    @property
    def rank_batch(self) -> int:
        return self.config.train.micro_batch * self.micro_batches

    def saves_at(self, step: int) -> bool:
        """True after the steps that end with a checkpoint."""
        return step % self.config.train.checkpoint_every == 0 or step == self.steps

    def logs_at(self, step: int) -> bool:
        return step == 1 or step % self.config.train.log_every == 0 or step == self.steps

    def looks_at(self, step: int) -> bool:
        """True at the steps whose features are measured."""
        return step == 1 or step % self.config.health.every == 0 or step == self.steps


def plan(config: RunConfig, world_size: int) -> Plan:
    """Lay a run out over `world_size` ranks.

    Raises: ConfigError when the global batch cannot be split evenly, or the strategy has one rank only.
    """
    micro, total = config.train.micro_batch, config.train.global_batch
    if config.strategy.kind == "single" and world_size != 1:
        raise ConfigError(
            "strategy.kind",
            got="single",
            need=f"deepspeed to train on {world_size} ranks",
            try_=("deepspeed",),
        )
    if total % (micro * world_size):
        each = micro * world_size
        near = sorted({max(1, total // each) * each, math.ceil(total / each) * each})
        raise ConfigError(
            "train.global_batch",
            got=total,
            need=f"a multiple of train.micro_batch {micro} × {world_size} ranks = {each}",
            try_=near,
        )
    return Plan(config, world_size, total // (micro * world_size))
