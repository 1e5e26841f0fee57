"""Puts a run's parts together: objective, target, backend, engine."""

from __future__ import annotations

from dataclasses import replace

import torch

from pretrain.config import ModelConfig, Plan
from pretrain.flops import recomputed_of
from pretrain.model.attention import Backend as Attention
from pretrain.model.attention import choose_backend
from pretrain.objective.make import first_encoder, make_objective
from pretrain.recompute import settled
from pretrain.start import put_exactly, take_optimizer, take_weights
from pretrain.strategy.base import Backend, Engine, World


def settle(plan: Plan, world: World) -> Plan:
    """The plan with what `activation_checkpointing: auto` leaves open decided, alike on all ranks.

    Where attention is not packed on one of them, all are planned as if it were on none.
    Raises: ConfigError, on every rank, when strategy.activation_memory is too small; UsageError.
    """
    config, device = plan.config, world.device.type
    if config.strategy.activation_checkpointing != "auto":
        return plan
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    attention = world.own(lambda: _attention(config.model, device, dtype))
    if world.any(attention == "sdpa"):
        config = config.model_copy(update={"model": config.model.model_copy(update={"attention": "sdpa"})})
    strategy = settled(config, device).strategy
    return replace(plan, config=plan.config.model_copy(update={"strategy": strategy}))


def build_engine(plan: Plan, world: World, *, takes_init: bool = True) -> Engine:
    """The engine of a run on this rank, with its initial weights (equal on all ranks).

    takes_init: those of init.weights, if it names any; False where a checkpoint is about to replace them.
    Raises, on every rank: CheckpointError and UsageError when init.weights cannot be used;
    UsageError when attention that is named does not work on one of them.
    """
    plan = settle(plan, world)
    config = plan.config
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    attention = world.own(lambda: _attention(config.model, world.device.type, dtype))
    objective = make_objective(config, attention)
    target = None if config.target.kind == "online" else first_encoder(objective, config, attention)
    if takes_init:
        world.own(lambda: take_weights(config.init, config.model, objective, target))
    exact = {}
    if takes_init and config.init.weights is not None and dtype == torch.bfloat16:
        exact = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    objective.recompute_blocks(*recomputed_of(config))
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
    if exact:
        put_exactly(engine, exact)
    if takes_init:
        take_optimizer(config.init, engine)
    return engine


def _attention(model: ModelConfig, device_type: str, dtype: torch.dtype) -> Attention:
    """What works for the heads of the encoder and of the predictor. Raises: UsageError."""
    width, _, heads, _ = model.encoder.shape
    found = choose_backend(model.attention, device_type, dtype, width // heads)
    if found == "xformers":
        inside = model.predictor.width // model.predictor.heads
        found = choose_backend(model.attention, device_type, dtype, inside)
    return found
