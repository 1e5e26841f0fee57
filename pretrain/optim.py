"""Parameter groups and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import OptimConfig
from pretrain.schedule import Knobs


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: what decays, and what does not: biases and norms, by the published rule.

    That rule asks whether a parameter has one dimension in Meta's layout, where mask tokens and modality
    vectors have three: they decay.
    """
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    decays = decaying_names(module)
    for name, parameter in module.named_parameters():
        (decaying if name in decays else plain).append(parameter)
    return [{"params": decaying, "decays": True}, {"params": plain, "decays": False, "weight_decay": 0.0}]


def decaying_names(module: nn.Module) -> frozenset[str]:
    """Of a module that is still whole: the parameters that take weight decay."""
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if not name.endswith("bias") and (parameter.ndim > 1 or name.endswith("mask_token"))
    )


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the module's groups; the step's knobs are set by `apply_knobs`."""
    return torch.optim.AdamW(
        parameter_groups(module),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=config.fused,
        foreach=not config.fused,
    )


@torch.no_grad()
def clip_modules(
    gradients: Sequence[tuple[str, Tensor]],
    modules: Sequence[str],
    limit: float,
    add: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Scale the gradients of encoder and predictor, each to a norm of at most `limit`, in place.

    gradients: (parameter, what this rank owns of its gradient). modules: the first words of their names.
    add: a tensor's sum over ranks, where each owns a part.
    Returns the norm of all together, before, where the ranks add up; the host waits for nothing. When it is
    not finite the gradients are not to be used.
    Source: the released code of V-JEPA, which clips each module by itself.
    """
    own: dict[str, list[Tensor]] = {module: [] for module in modules}
    for name, gradient in gradients:
        own[name.partition(".")[0]].append(gradient)
    device = gradients[0][1].device if gradients else torch.device("cpu")
    squares = [
        torch.stack(torch._foreach_norm(each, 2.0, torch.float32)).square().sum()
        if each
        else torch.zeros((), device=device)
        for each in own.values()
    ]
    norms = add(torch.stack(squares)).sqrt()
    is_long = norms.isfinite() & (norms > limit)  # else what is not finite could be scaled to zero, unseen
    scales = torch.where(is_long, limit / (norms + 1e-6), 1.0).to(device).unbind()
    for each, scale in zip(own.values(), scales, strict=True):
        if each and math.isfinite(limit):
            torch._foreach_mul_(each, scale)
    return norms.square().sum().sqrt()


def clip_whole(module: nn.Module, config: OptimConfig) -> Tensor:
    """Clip the gradients of a module that this rank holds all of; the norm of all together, before."""
    limit = math.inf if config.clip_norm is None else config.clip_norm
    if config.clip_per == "module":
        gradients = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
        return clip_modules(gradients, [name for name, _ in module.named_children()], limit)
    total = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    if math.isfinite(limit):
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, total)
    return total


def apply_knobs(groups: list[dict[str, Any]], knobs: Knobs) -> None:
    """Set learning rate and weight decay of every group."""
    for group in groups:
        group["lr"] = knobs.lr
        group["weight_decay"] = knobs.weight_decay if group["decays"] else 0.0
