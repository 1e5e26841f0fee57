"""What a run's settings allow, and may not be meant: told at its start."""

from __future__ import annotations

from collections.abc import Collection

from pretrain.config import Plan

MANY_FORWARDS = 64  # in bf16 sums of 128 were 1.3 % off, of 512 9 %; in float32 those of up to 128 0.6 %


def notes(plan: Plan, action_names: Collection[str]) -> list[str]:
    """action_names: of all data sets of the run."""
    found, config = [], plan.config
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
    return found
