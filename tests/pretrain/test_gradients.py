"""Where the gradient of every kind of objective goes, and that bf16 does not lose it."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from pretrain.config import RunConfig
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch, Objective
from pretrain.objective.make import first_encoder, make_objective
from tests.pretrain.small_objective import KINDS, config_of, make, passed, small_batch

# What a batch of clips alone moves nothing of, with a gradient of zeros all the same.
OF_PICTURES = [
    "encoder.embed_pictures.bias",
    "encoder.embed_pictures.weight",
    "encoder.modalities.table_2D[1]",
    "predictor.mask_tokens[2]",
    "predictor.modalities.table_2D[1]",
]


@pytest.mark.parametrize("name", KINDS)
def test_every_trained_weight_has_a_gradient_and_no_target_has(name: str) -> None:
    config = config_of(name)
    objective, target, output = passed(config, small_batch(config))
    assert math.isfinite(float(output.loss.detach())) and output.loss.dtype == torch.float32
    output.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    assert unmoved(objective) == (OF_PICTURES if config.model.encoder.pictures == "own" else [])
    assert all(p.grad is None for p in target.parameters())
    assert not any(part.requires_grad for part in output.parts.values())
    for seen in output.seen.values():
        assert len(seen.features_MD) == len(seen.token_M) and not seen.features_MD.requires_grad
        assert seen.token_M.max() < math.prod(config.grid) * (2 if name == "action" else 1)


def unmoved(objective: Objective) -> list[str]:
    """Weights whose gradient is zero throughout; of tables that have a row for each kind, the row."""
    found = []
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None
        if name.endswith(("mask_tokens", "modalities.table_2D")):
            found += [f"{name}[{row}]" for row, gradient in enumerate(parameter.grad) if not gradient.any()]
        elif not parameter.grad.any():
            found.append(name)
    return sorted(found)


def test_pictures_among_clips_move_every_weight() -> None:
    """Also what a batch without them leaves alone."""
    config = config_of("masked, 2.1")
    objective = make(config)
    batch = small_batch(config, pictures=(False, True, False))
    target = first_encoder(objective, config)
    objective(batch, objective.targets(target, batch)).loss.backward()
    assert unmoved(objective) == []


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_passes_in_bf16(name: str) -> None:
    """As the recipes run: weights in bf16, targets and loss in float32."""
    config = config_of(name)
    objective = make(config)
    target = first_encoder(objective, config).to(torch.bfloat16)
    exact = passed(config, small_batch(config))[2]
    objective.to(torch.bfloat16)
    batch = small_batch(config)
    output = objective(batch, objective.targets(target, batch))
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.05)
    output.loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in objective.parameters())


def many_clips(config: RunConfig, count: int) -> Batch:
    """Noise, of which each weight's gradient is a sum of thousands."""
    few = small_batch(config, 6)
    assert few.states is not None and few.actions is not None
    clips = torch.randn(count, *few.clips.shape[1:], generator=torch.Generator().manual_seed(5))
    masks = sample_masks(
        config.objective.masks, config.grid, 0, 0, range(count), truncate=config.objective.truncate
    )
    numbers = tuple(range(count))
    states, actions = (given.repeat(count // 6, 1, 1) for given in (few.states, few.actions))
    keys = tuple(map(str, numbers))
    return Batch(0, numbers, keys, clips, masks, states, actions, state_names=few.state_names)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_in_bf16_are_those_of_float32(name: str) -> None:
    """Of each weight within bf16's rounding: no sum over tokens is taken in bf16, where it stops growing."""
    config = config_of(name)
    exact = make_objective(config)  # as at the start: tokens are alike, and their sums large
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    batch = many_clips(config, 192)
    targets = exact.targets(first_encoder(exact, config), batch)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    exact(batch, targets).loss.backward()
    rounded(batch, targets).loss.backward()
    for (key, one), two in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        difference = float((two.grad.float() - one.grad).norm() / one.grad.norm().clamp(min=1e-30))
        assert difference < 0.15, key
