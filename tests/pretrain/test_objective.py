"""The masked latent objective: what the loss is, and where its gradient goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrain.config import MaskConfig, MaskedLatentConfig, RunConfig
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch
from pretrain.objective.masked import MaskedLatent

CONFIG = RunConfig.model_validate(
    {
        "name": "objective",
        "data": {"shards": "nowhere", "frames": 4, "size": 32},
        "model": {
            "encoder": {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8},
            "predictor": {"depth": 2, "width": 24, "heads": 2},
        },
    }
)
KINDS = (MaskConfig(blocks=3, spatial_scale=0.15), MaskConfig(blocks=1, spatial_scale=0.6))


def make() -> MaskedLatent:
    objective = MaskedLatent(MaskedLatentConfig(masks=KINDS), CONFIG.model, CONFIG.grid, "sdpa")
    objective.initialise(0)
    return objective


def make_batch(clips: int = 3, first: int = 0) -> Batch:
    x = torch.randn(6, 3, 4, 32, 32, generator=torch.Generator().manual_seed(4))[first : first + clips]
    masks = sample_masks(KINDS, CONFIG.grid, 0, 0, range(first, first + clips))
    return Batch(0, tuple(range(clips)), tuple(map(str, range(clips))), x, masks)


def test_the_loss_sends_no_gradient_to_the_target() -> None:
    objective, batch = make(), make_batch()
    target = make().encoder
    assert all(p.requires_grad for p in target.parameters()), (
        "so that only the stop-gradient can hold it back"
    )
    output = objective(batch, objective.targets(target, batch))
    output.loss.backward()
    assert all(p.grad is None for p in target.parameters())
    without = [name for name, p in objective.named_parameters() if p.grad is None]
    assert without == [], "every trained parameter gets a gradient"


def test_targets_are_normed_without_affine_terms() -> None:
    objective, batch = make(), make_batch()
    targets = objective.targets(objective.encoder, batch)
    assert not targets.requires_grad
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, unbiased=False), torch.ones(3, 32), atol=1e-2, rtol=0)


def test_loss_is_the_mean_over_clips_of_each_clips_mean_l1() -> None:
    objective, batch = make(), make_batch()
    targets = objective.targets(objective.encoder, batch)
    output = objective(batch, targets)
    losses, row = [], 0
    for sequence, hidden in enumerate(batch.masks.hidden_lengths):
        clip = sequence % 3
        tokens = batch.masks.hidden_P[row : row + hidden] % 32
        losses.append(F.l1_loss(output.prediction_PD[row : row + hidden], targets[clip, tokens]))
        row += hidden
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean())
    torch.testing.assert_close(output.kind_losses, torch.stack(losses).view(2, 3).mean(1))


def test_a_batch_loses_what_its_halves_lose_on_average() -> None:
    """Why the loss and its gradient are the same for any number of ranks and micro-batches."""
    objective = make()

    def loss_of(batch: Batch) -> torch.Tensor:
        found: torch.Tensor = objective(batch, objective.targets(objective.encoder, batch)).loss
        return found

    halves = (loss_of(make_batch(2, 0)) + loss_of(make_batch(2, 2))) / 2
    torch.testing.assert_close(loss_of(make_batch(4, 0)), halves)


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    """Changing pixels of tokens that every kind hides changes targets, never predictions."""
    objective, batch = make(), make_batch(1)
    always = set(range(32))
    for sequence in range(2):
        places = batch.masks.hidden_P[batch.masks.hidden_P // 32 == sequence] % 32
        always &= set(places.tolist())
    if not always:
        pytest.fail("the masks of this test must share a token")
    token = min(always)
    t, row, column = token // 16, token % 16 // 4, token % 4
    clips = batch.clips.clone()
    clips[:, :, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 5.0
    targets = objective.targets(objective.encoder, batch)
    before = objective(batch, targets).prediction_PD
    after = objective(replace(batch, clips=clips), targets).prediction_PD
    assert torch.equal(before, after)
    assert not torch.equal(targets, objective.targets(objective.encoder, replace(batch, clips=clips)))
