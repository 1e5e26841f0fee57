"""What a run's settings allow, and may not be meant: told at its start."""

from __future__ import annotations

import math
from collections.abc import Collection

from pretrain.config import Plan, RunConfig

MANY_FORWARDS = 64  # in bf16 sums of 128 were 1.3 % off, of 512 9 %; in float32 those of up to 128 0.6 %


def notes(
    plan: Plan, action_names: Collection[str], asked: RunConfig | None = None, device: str = "cpu"
) -> list[str]:
    """action_names: of all data sets of the run. asked: the run as configured, of which `plan` is settled.

    device: cpu or cuda.
    """
    found, config = [], plan.config
    if asked is not None and asked.strategy.activation_checkpointing == "auto":
        from pretrain.recompute import told

        found.append(told(asked, config, device))
    is_zero_1 = config.strategy.kind == "deepspeed" and config.strategy.zero_stage == 1
    if is_zero_1 and config.train.precision == "bf16" and plan.micro_batches > MANY_FORWARDS:
        found.append(
            f"gradients of {plan.micro_batches} forwards a step are added up in bf16 at ZeRO-1, which rounds "
            f"them; strategy.zero_stage=2 adds them in float32"
        )
    if config.objective.kind == "future_latent" and not config.objective.action_size and action_names:
        names = ", ".join(sorted(set(action_names)))
        found.append(
            f"the data has actions ({names}), which the predictor is not told: objective.action_size is 0"
        )
    return found + _of_keep_best(config)


def _of_keep_best(config: RunConfig) -> list[str]:
    """A checkpoint is kept by its score where there are both, at the same step."""
    score, every = config.train.keep_best, config.probe.every
    saves, steps = config.train.checkpoint_every, config.train.steps
    if score is None:
        return []
    if every is None or every > steps:
        why = (
            "probe.every is null"
            if every is None
            else f"probe.every={every} is more than train.steps={steps}"
        )
        return [
            f"train.keep_best is {score!r}, and no step is scored while training, as {why}: only `foreframe "
            f"probe` gives scores then; probe.every={min(saves, steps)} scores each checkpoint"
        ]
    if every % saves == 0:
        return []
    one_in = saves // math.gcd(every, saves)
    return [
        f"train.keep_best is {score!r}: steps are scored every {every} (probe.every) and have a checkpoint "
        f"every {saves} (train.checkpoint_every), so that only one in {one_in} scored steps can be kept; "
        f"probe.every={saves * max(1, round(every / saves))} scores none that has no checkpoint"
    ]
