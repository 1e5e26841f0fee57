"""How a run is trained, watched and written down."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError

from pretrain.config.base import Fraction, PositiveInt, Section

MOST_CLIPS = 1 << 16  # of a forward


def _size(given: object) -> object:
    """Bytes of a size in words, such as 40GB or 36GiB."""
    if isinstance(given, bool):  # else true would be one byte
        raise ValueError("a number of bytes, or a size such as 40GB or 36GiB")
    if not isinstance(given, str):
        return given
    try:
        return int(TypeAdapter(ByteSize).validate_python(given))
    except ValidationError as error:
        raise ValueError("a number of bytes, or a size such as 40GB or 36GiB") from error


# Far above any that was trained, as with Width: a plan of a forward is as long as its clips are many.
ClipsAStep = Annotated[int, Field(ge=1, le=1 << 24)]
ClipsAForward = Annotated[int, Field(ge=1, le=MOST_CLIPS)]
Size = Annotated[int, Field(ge=1), BeforeValidator(_size)]


class MomentumConfig(Section):
    """Momentum of the target's moving average, ramped linearly over the schedule."""

    start: Fraction = Field(0.99925, description="at the first step")
    end: Fraction = Field(
        0.99925, description="where optim.schedule_steps end; equal to start for a constant"
    )


class TargetConfig(Section):
    """Which encoder says what is to be guessed."""

    kind: Literal["ema", "online", "frozen"] = Field(
        "ema",
        description="the context encoder's moving average; the context encoder itself; or the encoder of the "
        "start, never moved",
    )
    stop_gradient: bool = Field(
        True,
        description="false: the loss also pulls targets to predictions, and collapses; with kind ema, "
        "the context encoder's own features of what is to be guessed, which the average follows",
    )
    momentum: MomentumConfig = MomentumConfig()


class InitConfig(Section):
    """What a run starts from, at step 0; a run that has a checkpoint goes on from that."""

    weights: str | None = Field(
        None,
        min_length=1,
        description="a run's folder (its newest checkpoint), what `foreframe import` or `export` wrote, or a "
        "Hugging Face folder; null: weights drawn from the seed",
    )
    parts: Literal["all", "encoder"] = Field(
        "all", description="what is taken: encoder, target and predictor; or the encoder (and target) alone"
    )
    optimizer: bool = Field(
        False, description="of a run's folder: AdamW's averages too, as a cooldown goes on"
    )


class OptimConfig(Section):
    """AdamW with warm-up, then constant, cosine or linear; biases and norms take no weight decay."""

    lr: float = Field(5.25e-4, gt=0, description="learning rate after the warm-up")
    start_lr: float = Field(0.0, ge=0, description="learning rate that the warm-up starts from")
    warmup_steps: int = Field(0, ge=0, description="steps from start_lr to lr, linear")
    decay: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="how the learning rate goes from lr to final_lr; constant: it stays"
    )
    final_lr: float | None = Field(None, ge=0, description="where the decay ends; null with decay constant")
    decay_steps: PositiveInt | None = Field(
        None, description="the last steps of the schedule, in which lr decays; null: all after the warm-up"
    )
    schedule_steps: PositiveInt | None = Field(
        None,
        description="steps over which lr, weight decay and momentum are laid out: a run that stops earlier "
        "never comes to their ends; null: train.steps",
    )
    weight_decay: float = Field(0.04, ge=0, description="decoupled weight decay of matrices")
    final_weight_decay: float | None = Field(
        None, ge=0, description="where a cosine over the schedule ends; null keeps it constant"
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's averages")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    clip_norm: float | None = Field(None, gt=0, description="limit of the gradient's norm; null for none")
    clip_per: Literal["all", "module"] = Field(
        "all", description="the norm of all weights together; or encoder and predictor each, as V-JEPA"
    )
    fused: bool = Field(
        True,
        description="AdamW passes once over weights and averages; false: once for each of its operations",
    )


class TrainConfig(Section):
    steps: PositiveInt = Field(90_000, description="optimizer steps of the run")
    global_batch: ClipsAStep = Field(3072, description="clips a step over all ranks")
    micro_batch: ClipsAForward = Field(24, description="clips a rank a forward")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of weights and activations in the passes")
    checkpoint_every: PositiveInt = Field(
        1000, description="steps between checkpoints; the last step saves too"
    )
    keep_checkpoints: PositiveInt = Field(2, description="newest whole checkpoints kept")
    keep_every: PositiveInt | None = Field(
        None, description="checkpoints at multiples of so many steps are kept for good; null: none"
    )
    keep_best: str | None = Field(
        None,
        min_length=1,
        description="a score of probes, such as shape or linear top-1: the checkpoint that has the best one "
        "is kept; null: none",
    )
    checkpoint_store: str | None = Field(
        None,
        min_length=1,
        description="s3:// address that every checkpoint is copied to, and resumed from where the run's "
        "folder has none as new; null: the run's folder alone",
    )
    save_in_background: bool = Field(
        True,
        description="training goes on while a checkpoint is written; it waits for the copy to memory only",
    )
    log_every: PositiveInt = Field(20, description="steps between lines of metrics")
    max_skipped_steps: int = Field(20, ge=0, description="non-finite steps in a row before the run stops")
    time_limit_s: float | None = Field(
        None, gt=0, description="save and stop after so long; null for no limit"
    )
    hang_s: float | None = Field(
        900.0,
        gt=0,
        description="a rank in which nothing moves for so long (no batch, step, or byte saved) ends the run "
        "with the stacks of all threads; null: never",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads a rank; null shares the cores out")
    compile: Literal["auto", "blocks", "none"] = Field(
        "auto",
        description="blocks by torch.compile, once for any number of tokens; auto: on CUDA where it works, "
        "but not at ZeRO-3",
    )


class RecomputedConfig(Section):
    """How many of the first blocks of each stack are computed again in the backward."""

    encoder: int = Field(0, ge=0, description="blocks of the context encoder that keep their input only")
    encoder_mlps: int = Field(0, ge=0, description="blocks after those whose MLP alone is computed again")
    predictor: int = Field(0, ge=0, description="blocks of the predictor that keep their input only")
    predictor_mlps: int = Field(0, ge=0, description="blocks after those whose MLP alone is computed again")


class CheckpointingSection(Section):
    """What is kept of a forward for its backward, and what is computed again."""

    kind: str
    activation_checkpointing: Literal[False, True, "auto"] = Field(
        False,
        description="compute blocks again in the backward pass instead of keeping what is inside them; auto: "
        "as few as keep activations within strategy.activation_memory",
    )
    activation_memory: Size | None = Field(
        None,
        description="with activation_checkpointing auto: bytes a rank that activations may take at once, "
        "such as 40GB or 36GiB",
    )
    recomputed_blocks: RecomputedConfig | None = Field(
        None, description="with activation_checkpointing true: which blocks; null: all"
    )


class SingleConfig(CheckpointingSection):
    """One process, plain PyTorch: the reference the others are tested against."""

    kind: Literal["single"] = "single"


class DeepSpeedConfig(CheckpointingSection):
    """DeepSpeed ZeRO over all ranks, with a sharded moving average of the target."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="what is sharded: 0 nothing, 1 optimizer, 2 gradients too, 3 weights and target too",
    )
    offload_optimizer: bool = Field(
        False, description="master weights, AdamW's averages and the target's average in host memory"
    )
    overlap_comm: bool | None = Field(
        None,
        description="gradients are summed over ranks while the backward goes on, at ZeRO-1 and 2 with a "
        "second buffer; null: at ZeRO-3 only, as DeepSpeed does by itself",
    )
    reduce_in_fp32: bool = Field(
        False, description="bf16 gradients are summed over ranks in float32, for twice the bytes sent"
    )
    timeout_s: float = Field(
        120.0, gt=0, description="a collective that takes longer ends the run: a lost peer"
    )

    @property
    def overlaps(self) -> bool:
        """Whether gradients are summed over ranks while the backward goes on."""
        return self.zero_stage == 3 if self.overlap_comm is None else self.overlap_comm


class RollbackConfig(Section):
    """How a run goes on from before a trouble; what is changed stays changed, and adds up."""

    times: PositiveInt = Field(2, description="at most so often in a run; then the run stops")
    lr_scale: float = Field(0.5, gt=0, le=1, description="the learning rate is multiplied by this each time")
    momentum: Fraction | None = Field(
        None, description="the target's momentum is at least this afterwards; null: as configured"
    )
    data: Literal["again", "skip"] = Field(
        "again", description="the samples since then are taken again, or never"
    )


class HealthConfig(Section):
    """How often a run is looked at, when that is trouble, and what is done about it."""

    every: PositiveInt = Field(50, description="steps between looks at the features")
    on_collapse: Literal["note", "warn", "stop", "rollback"] = Field(
        "stop",
        description="what a collapse or a divergence does to the run; rollback: it goes on from the newest "
        "checkpoint from before the trouble",
    )
    std_floor: Fraction = Field(
        0.1, description="trouble when the std across samples is below this share of that at the start"
    )
    rank_floor: Fraction = Field(
        0.1, description="trouble when RankMe of the features is below this share of that at the start"
    )
    patience: PositiveInt = Field(3, description="looks in a row at which it is seen before it counts")
    rollback: RollbackConfig = RollbackConfig()


class ProbeConfig(Section):
    """What is read out of frozen features, always beside the untrained encoder."""

    data: str | None = Field(
        None, description="data set with train and eval splits; null: the run's own (first) data set"
    )
    train_clips: PositiveInt = Field(512, description="clips of the train split that the probe is fitted on")
    eval_clips: PositiveInt = Field(256, description="clips of the eval split that it is scored on")
    batch: PositiveInt = Field(16, description="clips a forward")
    every: PositiveInt | None = Field(
        2000,
        description="steps between probes while training, on fixed clips; null: none",
    )
    encoder: Literal["auto", "context"] = Field(
        "auto",
        description="what is probed while training; auto: the moving average where there is one; context: "
        "what gradients move, so that runs with and without an average are alike",
    )
    online_clips: PositiveInt = Field(
        256, description="clips of each split, at most, that are probed while training"
    )
    places: int | None = Field(
        None,
        ge=1,
        le=8,
        description="rows and columns of places that states are read from; 1: the mean token of a tubelet; "
        "null: as many as memory allows, 8 at most",
    )


class TrackerConfig(Section):
    kind: Literal["mlflow", "jsonl"] = Field("mlflow", description="jsonl writes the run's folder only")
    experiment: str | None = Field(
        None,
        min_length=1,
        description="MLflow experiment; null: the objective and the data, as `masked_latent on howto-v1`",
    )
    group: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="runs of one group lie below one run of that name, as those of a sweep do; null: none",
    )
    run_name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="what the run is called in MLflow, in reports and where a sweep tells of it; null: its "
        "`name`, in MLflow with the seed",
    )
    uri: str | None = Field(None, description="MLflow address; null: mlflow.db in the run's folder")
