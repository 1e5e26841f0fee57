"""Puts a run's parts together: objective, target, backend, engine."""

from __future__ import annotations

import torch

from pretrain.config import Plan
from pretrain.model.attention import choose_backend
from pretrain.objective.make import first_encoder, make_objective
from pretrain.start import take_optimizer, take_weights
from pretrain.strategy.base import Backend, Engine, World


def build_engine(plan: Plan, world: World, *, takes_init: bool = True) -> Engine:
    """The engine of a run on this rank, with its initial weights (equal on all ranks).

    takes_init: those of init.weights, if it names any; False where a checkpoint is about to replace them.
    Raises, on every rank: CheckpointError and UsageError when init.weights cannot be used.
    """
    config = plan.config
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    width, _, heads, _ = config.model.encoder.shape
    attention = choose_backend(config.model.attention, world.device.type, dtype, width // heads)
    objective = make_objective(config, attention)
    target = None if config.target.kind == "online" else first_encoder(objective, config, attention)
    if takes_init:
        world.own(lambda: take_weights(config.init, objective, target))
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
    engine = Engine(plan, world, objective, target, backend)
    if takes_init:
        take_optimizer(config.init, engine)
    return engine
