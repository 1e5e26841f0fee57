"""Puts a run's parts together: objective, target, backend, engine."""

from __future__ import annotations

import torch

from pretrain.config import Plan
from pretrain.model.attention import choose_backend
from pretrain.objective.make import first_encoder, make_objective
from pretrain.strategy.base import Backend, Engine, World


def build_engine(plan: Plan, world: World) -> Engine:
    """The engine of a run on this rank, with its initial weights (equal on all ranks)."""
    config = plan.config
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    width, _, heads, _ = config.model.encoder.shape
    attention = choose_backend(config.model.attention, world.device.type, dtype, width // heads)
    objective = make_objective(config, attention)
    target = None if config.target.kind == "online" else first_encoder(objective, config, attention)
    if config.strategy.activation_checkpointing:
        objective.recompute_blocks()
    objective.to(world.device)
    if target is not None:
        target.to(world.device)
    backend: Backend
    if config.strategy.kind == "single":
        from pretrain.strategy.single import SingleBackend

        backend = SingleBackend(plan, objective)
    else:
        from pretrain.strategy.deepspeed import DeepSpeedBackend

        backend = DeepSpeedBackend(plan, world, objective)
    return Engine(plan, world, objective, target, backend)
