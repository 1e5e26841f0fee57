"""Puts a run's parts together: objective, target, backend, engine."""

from __future__ import annotations

from dataclasses import replace

import torch

from pretrain.config import Plan
from pretrain.flops import recomputed_of
from pretrain.kernels import TARGET, Kernels, kernels_for
from pretrain.model.linear import use
from pretrain.model.vit import Transformer
from pretrain.objective.make import first_encoder, make_objective
from pretrain.recompute import settled
from pretrain.start import put_exactly, take_optimizer, take_weights
from pretrain.strategy.base import Backend, Engine, World


def settle(plan: Plan, device: str, kernels: Kernels) -> Plan:
    """The plan with what `activation_checkpointing: auto` leaves open decided, for ranks of `device`.

    Where attention lays sequences out, it is planned so. Raises: ConfigError when strategy.activation_memory
    is too small.
    """
    config = plan.config
    if config.strategy.activation_checkpointing != "auto":
        return plan
    trained = (each for name, each in kernels.attention.items() if name != TARGET)
    if any(each.startswith("sdpa") for each in trained):
        config = config.model_copy(update={"model": config.model.model_copy(update={"attention": "sdpa"})})
    strategy = settled(config, device).strategy
    return replace(plan, config=plan.config.model_copy(update={"strategy": strategy}))


def build_engine(
    plan: Plan, world: World, kernels: Kernels | None = None, *, takes_init: bool = True
) -> Engine:
    """The engine of a run on this rank, with its initial weights (equal on all ranks).

    kernels: what computes it; None finds out.
    takes_init: those of init.weights, if it names any; False where a checkpoint is about to replace them.
    Raises, on every rank: CheckpointError and UsageError when init.weights cannot be used;
    UsageError when attention or a library of products that is named does not work on one of them.
    """
    kernels = kernels_for(plan.config, world) if kernels is None else kernels
    plan = settle(plan, world.device.type, kernels)
    config = plan.config
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    world.own(lambda: use(config.model.products))
    objective = make_objective(config)
    target = None if config.target.kind == "online" else first_encoder(objective, config)
    stacks: dict[str, Transformer] = objective.stacks() | ({} if target is None else {TARGET: target})
    for name, stack in stacks.items():
        stack.backend = kernels.attention[name]
        stack.compile_blocks(kernels.compiler)
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
    engine.compiles = kernels.compiler is not None
    if exact:
        put_exactly(engine, exact)
    if takes_init:
        take_optimizer(config.init, engine)
    return engine
