"""The run model: every setting of a training run, typed, frozen, complete; and its plan for a world size.

Unknown keys, wrong types and impossible combinations are refused by pydantic; `launch/config.py`
turns what it finds into sentences with file, dotted key and the nearest valid key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from data_pipeline.errors import ConfigError
from pretrain.config.base import Section
from pretrain.config.data import AugmentConfig, DataConfig
from pretrain.config.model import ModelConfig
from pretrain.config.objective import MaskedLatentConfig, ObjectiveConfig
from pretrain.config.training import (
    DeepSpeedConfig,
    HealthConfig,
    InitConfig,
    OptimConfig,
    ProbeConfig,
    SingleConfig,
    TargetConfig,
    TrackerConfig,
    TrainConfig,
)


class RunConfig(Section):
    """A whole training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder is out/name")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of weights, order, crops and masks")
    out: str = Field("runs", description="folder that holds the run's folder")
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = MaskedLatentConfig()
    target: TargetConfig = TargetConfig()
    init: InitConfig = InitConfig()
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
    def schedule_steps(self) -> int:
        """Steps over which learning rate, weight decay and momentum are laid out."""
        return self.optim.schedule_steps or self.train.steps

    @property
    def learns_in_context(self) -> bool:
        """Whether what is learned is the context encoder itself: there is no target, or it never moves."""
        is_frozen = self.target.kind == "frozen" and self.objective.kind != "action_latent"
        return self.target.kind == "online" or is_frozen

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

        addresses = [
            ("tracker.uri", self.tracker.uri),
            ("train.checkpoint_store", self.train.checkpoint_store),
        ]
        addresses += [("data.shards", source.shards) for source in self.data.sources]
        for key, address in addresses:
            if address is not None and "@" in address.partition("://")[2].partition("/")[0]:
                need = "an address without user name and password: they belong in the environment"
                found.append((key, "(an address with credentials)", need, ()))
        for source in self.data.sources:
            scheme = source.shards.partition("://")[0]
            if "://" in source.shards and scheme != "s3":
                found.append(("data.shards", f"{scheme}://…", "a folder, or an s3:// address", ()))
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
        found += self._objective_problems()
        found += self._schedule_problems()
        found += self._checkpointing_problems()
        if (
            self.strategy.kind == "deepspeed"
            and self.strategy.zero_stage == 0
            and self.train.precision == "bf16"
        ):
            need = "1, 2 or 3 with train.precision bf16 (stage 0 keeps no fp32 master copy)"
            found.append(("strategy.zero_stage", 0, need, (1,)))
        if (
            self.strategy.kind == "deepspeed"
            and self.strategy.offload_optimizer
            and self.strategy.zero_stage == 0
        ):
            need = "false with strategy.zero_stage 0, which shards no optimizer"
            found.append(("strategy.offload_optimizer", True, need, (False, "strategy.zero_stage=1")))
        if self.strategy.kind == "deepspeed" and self.strategy.overlap_comm and not self.strategy.zero_stage:
            need = (
                "false or null with strategy.zero_stage 0, which sums gradients when the backward has ended"
            )
            found.append(("strategy.overlap_comm", True, need, (False, "strategy.zero_stage=1")))
        if (
            self.strategy.kind == "deepspeed"
            and self.strategy.reduce_in_fp32
            and self.train.precision == "fp32"
        ):
            need = "false with train.precision fp32, whose gradients are summed in float32 as they are"
            found.append(("strategy.reduce_in_fp32", True, need, (False,)))
        if self.optim.clip_per == "module" and self.optim.clip_norm is None:
            need = "all without optim.clip_norm, or a limit"
            found.append(("optim.clip_per", "module", need, ("all",)))
        if self.strategy.kind == "single" and self.train.precision == "bf16":
            need = "fp32 with strategy.kind single (it keeps no fp32 master copy)"
            found.append(("train.precision", "bf16", need, ("fp32", "strategy.kind=deepspeed")))
        if (
            self.train.compile == "blocks"
            and self.strategy.kind == "deepspeed"
            and self.strategy.zero_stage == 3
        ):
            need = (
                "auto or none with strategy.zero_stage 3, which brings weights in hooks amid what is compiled"
            )
            found.append(("train.compile", "blocks", need, ("auto", "strategy.zero_stage=2")))
        store = self.train.checkpoint_store
        if store is not None and not store.startswith("s3://"):
            found.append(("train.checkpoint_store", store, "an s3:// address, or null", (None,)))
        every = self.train.keep_every
        if every is not None:
            multiple("train.keep_every", every, self.train.checkpoint_every, "train.checkpoint_every")
        return found

    def _checkpointing_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules about what is kept of a forward and what is computed again."""
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        strategy, memory, blocks = self.strategy, "strategy.activation_memory", "strategy.recomputed_blocks"
        is_auto = strategy.activation_checkpointing == "auto"
        if is_auto and strategy.activation_memory is None:
            need = (
                "a size, such as 40GB, with strategy.activation_checkpointing auto; estimate says what fits"
            )
            found.append((memory, None, need, ("strategy.activation_checkpointing=true",)))
        if not is_auto and strategy.activation_memory is not None:
            need = f"null with strategy.activation_checkpointing {strategy.activation_checkpointing}".lower()
            found.append(
                (
                    memory,
                    str(strategy.activation_memory),
                    need,
                    (None, "strategy.activation_checkpointing=auto"),
                )
            )
        if strategy.recomputed_blocks is None:
            return found
        if strategy.activation_checkpointing is not True:
            need = "null, or strategy.activation_checkpointing true"
            given = strategy.recomputed_blocks.model_dump(exclude_defaults=True)
            told = ", ".join(f"{key} {number}" for key, number in given.items()) or "all blocks kept"
            found.append((blocks, told, need, (None, "strategy.activation_checkpointing=true")))
        depths = {"encoder": self.model.encoder.shape[1], "predictor": self.model.predictor.depth}
        for name, depth in depths.items():
            whole, mlps = (getattr(strategy.recomputed_blocks, key) for key in (name, f"{name}_mlps"))
            if mlps > depth:
                need = f"at most {depth}: the {name} has as many blocks"
                found.append((f"{blocks}.{name}_mlps", mlps, need, (max(0, depth - whole),)))
            elif whole + mlps > depth:
                need = f"at most {depth}{f' with {name}_mlps' if mlps else ''}: the {name} has as many blocks"
                found.append((f"{blocks}.{name}", whole, need, (depth - mlps,)))
        return found

    def _schedule_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules about learning rate and the length of the schedule."""
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        optim, steps = self.optim, self.train.steps
        if optim.warmup_steps > steps:
            need = f"at most train.steps = {steps}"
            found.append(("optim.warmup_steps", optim.warmup_steps, need, (steps // 10,)))
        if self.schedule_steps < steps:
            need = f"at least train.steps = {steps}, or null"
            found.append(("optim.schedule_steps", optim.schedule_steps, need, (steps, None)))
        left = max(1, self.schedule_steps - optim.warmup_steps)
        if optim.decay_steps is not None and optim.decay_steps > left:
            need = f"at most {left}, the steps of the schedule after the warm-up"
            found.append(("optim.decay_steps", optim.decay_steps, need, (left, None)))
        if optim.decay == "constant":
            for key in ("final_lr", "decay_steps"):
                if (value := getattr(optim, key)) is not None:
                    need = "null with optim.decay constant, or another decay"
                    found.append((f"optim.{key}", value, need, ("optim.decay=cosine", "optim.decay=linear")))
        elif optim.final_lr is None:
            need = f"a number with optim.decay {optim.decay}: where it ends"
            found.append(("optim.final_lr", None, need, (1e-6,)))
        return found

    def _states_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules of the supervised objective."""
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        encoder = self.model.encoder
        if encoder.levels:
            need = "[] with objective.kind states, which reads the last level"
            found.append(("model.encoder.levels", list(encoder.levels), need, ([],)))
        if encoder.pictures == "own":
            need = "repeat with objective.kind states, which reads every tubelet"
            found.append(("model.encoder.pictures", "own", need, ("repeat",)))
        if not self.target.stop_gradient:
            need = "true with objective.kind states, which reads no target"
            found.append(("target.stop_gradient", False, need, (True,)))
        return found

    def _told_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules of predictors that are told actions: others would take no heed of these settings."""
        kind, predictor = self.objective.kind, self.model.predictor
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        if kind != "action_latent" and predictor.says != "features":
            need = "features, or objective.kind action_latent: only there is the moment before known"
            found.append(("model.predictor.says", predictor.says, need, ("features",)))
        if kind not in ("action_latent", "future_latent"):
            need = "left out, or objective.kind action_latent or future_latent, which are told actions"
            if predictor.told != "tokens":
                found.append(("model.predictor.told", predictor.told, need, ("tokens",)))
            if predictor.action_scale != 1.0:
                found.append(("model.predictor.action_scale", predictor.action_scale, need, (1.0,)))
        return found

    def _mirrored_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """No clip may be mirrored of which actions or states are read: left would be right."""
        objective = self.objective
        if not self.augment.hflip:
            return []
        match objective.kind:
            case "states":
                read = "objective.kind states: of a mirrored clip the states"
            case "action_latent":
                read = "objective.kind action_latent: of a mirrored clip the actions and states"
            case "future_latent" if objective.action_size:
                read = "objective.action_size: of a mirrored clip the actions"
            case _:
                return []
        return [("augment.hflip", True, f"false with {read} are no longer true", (False,))]

    def _objective_problems(self) -> list[tuple[str, object, str, tuple[object, ...]]]:
        """Rules about what is predicted, from what, by which encoder."""
        found: list[tuple[str, object, str, tuple[object, ...]]] = []
        kind, target, encoder = self.objective.kind, self.target, self.model.encoder
        if not target.stop_gradient and target.kind == "frozen":
            need = "true, or target.kind online or ema: no gradient reaches frozen weights"
            found.append(("target.stop_gradient", False, need, (True, "target.kind=online")))
        if kind == "action_latent" and target.kind != "frozen":
            need = "frozen with objective.kind action_latent, which trains a predictor only"
            found.append(("target.kind", target.kind, need, ("frozen",)))
        if kind in ("future_latent", "action_latent"):
            if encoder.levels:
                need = f"[] with objective.kind {kind}: its predictor takes one level"
                found.append(("model.encoder.levels", list(encoder.levels), need, ([],)))
            if encoder.pictures == "own":
                need = f"repeat with objective.kind {kind}: a picture has no future"
                found.append(("model.encoder.pictures", "own", need, ("repeat",)))
            if self.model.predictor.mask_tokens is not None:
                need = f"null with objective.kind {kind}, which has no mask kinds"
                found.append(("model.predictor.mask_tokens", self.model.predictor.mask_tokens, need, (None,)))
        found += self._told_problems()
        found += self._mirrored_problems()
        if kind == "states":
            found += self._states_problems()
        regularisers = getattr(self.objective, "regularisers", ())
        if regularisers and self.train.micro_batch < 2:
            need = "at least 2 with objective.regularisers, which compare the clips of a forward"
            found.append(("train.micro_batch", self.train.micro_batch, need, (2,)))
        if kind == "pixel" and not target.stop_gradient:
            need = "true with objective.kind pixel, which reads no target"
            found.append(("target.stop_gradient", False, need, (True,)))
        if kind in ("masked_latent", "pixel", "contrastive"):
            if self.grid[0] < 2 and any(mask.kind == "future" for mask in self.objective.masks):
                need = f"at least two tubelets of {encoder.tubelet} frames, where masks hide the future"
                found.append(("data.frames", self.data.frames, need, (2 * encoder.tubelet,)))
            if any(mask.kind == "future" for mask in self.objective.picture_masks):
                need = "blocks or tubes: a picture has no future"
                found.append(("objective.picture_masks", "future", need, ()))
        if kind == "future_latent" and self.grid[0] < 2:
            need = f"at least two tubelets of {encoder.tubelet} frames: a past and a future"
            found.append(("data.frames", self.data.frames, need, (2 * encoder.tubelet,)))
        if self.objective.kind == "action_latent" and self.data.frames <= self.objective.rollout_steps:
            need = f"more than objective.rollout_steps = {self.objective.rollout_steps}"
            found.append(("data.frames", self.data.frames, need, (self.objective.rollout_steps + 1,)))
        if self.init.optimizer and (self.init.weights is None or self.init.parts != "all"):
            need = "false, or init.weights naming a run's folder, and init.parts all"
            found.append(("init.optimizer", True, need, (False,)))
        if encoder.rope == "none" and encoder.rope_span is not None:
            need = "null with model.encoder.rope none, which turns nothing"
            found.append(("model.encoder.rope_span", encoder.rope_span, need, (None,)))
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

    def probes_at(self, step: int) -> bool:
        """True at the steps whose encoder is probed, and shown in pictures, while training."""
        every = self.config.probe.every
        return every is not None and step % every == 0

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
        near: list[object] = [*sorted({max(1, total // each) * each, math.ceil(total / each) * each})]
        if total % world_size == 0:
            of_rank = total // world_size
            fits = next(n for n in range(min(micro, of_rank), 0, -1) if of_rank % n == 0)
            near.append(f"train.micro_batch={fits}")
        raise ConfigError(
            "train.global_batch",
            got=total,
            need=f"a multiple of train.micro_batch {micro} × {world_size} ranks = {each}",
            try_=near,
        )
    return Plan(config, world_size, total // (micro * world_size))
