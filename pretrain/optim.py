"""Parameter groups and the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pretrain.config import OptimConfig
from pretrain.schedule import Knobs


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: what decays, and what does not: biases and norms, by the published rule.

    That rule asks whether a parameter has one dimension in Meta's layout, where mask tokens and modality
    vectors have three: they decay.
    """
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_plain = name.endswith("bias") or (parameter.ndim == 1 and not name.endswith("mask_token"))
        (plain if is_plain else decaying).append(parameter)
    return [{"params": decaying, "decays": True}, {"params": plain, "decays": False, "weight_decay": 0.0}]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the module's groups; the step's knobs are set by `apply_knobs`."""
    return torch.optim.AdamW(
        parameter_groups(module),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def apply_knobs(groups: list[dict[str, Any]], knobs: Knobs) -> None:
    """Set learning rate and weight decay of every group."""
    for group in groups:
        group["lr"] = knobs.lr
        group["weight_decay"] = knobs.weight_decay if group["decays"] else 0.0
