"""The masked latent objective: what the loss is, and where its gradient goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrain.config import RunConfig
from pretrain.objective.base import Batch
from pretrain.objective.hidden import HiddenObjective
from pretrain.objective.make import make_objective
from pretrain.objective.masked import context_weights, distances
from tests.pretrain.small_objective import MASKS, small_batch, small_config, woken

CONFIG = small_config()
V21 = small_config(
    {"kind": "masked_latent", "masks": MASKS, "context_loss": {"weight": 0.5, "warmup": [10, 30]}},
    encoder={"levels": [1, 2], "rope": "interleaved", "rope_span": 4, "pictures": "own"},
)


def make(config: RunConfig = CONFIG) -> HiddenObjective:
    found = make_objective(config)
    assert isinstance(found, HiddenObjective)
    return found


def make_batch(clips: int = 3, first: int = 0) -> Batch:
    return small_batch(CONFIG, clips, first)


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
    assert targets is not None and not targets.requires_grad
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, unbiased=False), torch.ones(3, 32), atol=1e-2, rtol=0)


def test_loss_is_the_mean_over_clips_of_each_clips_mean_l1() -> None:
    objective, batch = make(), make_batch()
    targets = objective.targets(objective.encoder, batch)
    assert targets is not None
    output = objective(batch, targets)
    losses, row = [], 0
    for sequence, hidden in enumerate(batch.masks.hidden_lengths):
        clip = sequence % 3
        tokens = batch.masks.hidden_P[row : row + hidden] % 32
        losses.append(
            F.l1_loss(output.seen["prediction"].features_MD[row : row + hidden], targets[clip, tokens])
        )
        row += hidden
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean())
    kinds = torch.stack(losses).view(2, 3).mean(1)
    torch.testing.assert_close(torch.stack([output.parts["mask0"], output.parts["mask1"]]), kinds.detach())


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
    assert targets is not None
    before = objective(batch, targets).seen["prediction"].features_MD
    after = objective(replace(batch, clips=clips), targets).seen["prediction"].features_MD
    assert torch.equal(before, after)
    changed = objective.targets(objective.encoder, replace(batch, clips=clips))
    assert changed is not None and not torch.equal(targets, changed)


def test_distance_is_to_the_nearest_hidden_token_of_the_same_sequence() -> None:
    masks = small_batch(CONFIG).masks
    found = distances(masks, CONFIG.grid)
    for kept, distance in zip(masks.kept_M.tolist(), found.tolist(), strict=True):
        sequence, token = divmod(kept, 32)
        own = [place % 32 for place in masks.hidden_P.tolist() if place // 32 == sequence]
        at = lambda t: (t // 16, t // 4 % 4, t % 4)  # noqa: E731
        assert distance == pytest.approx(
            min(sum((a - b) ** 2 for a, b in zip(at(token), at(t), strict=True)) ** 0.5 for t in own),
            abs=1e-5,
        )


def test_context_loss_is_added_as_published() -> None:
    """V-JEPA 2.1, eq. 2 and 3: L1 on seen tokens over the root of their distance, risen with the steps."""
    objective = woken(make(V21))
    assert isinstance(objective, HiddenObjective)
    for step, rise in ((0, 0.0), (10, 0.0), (15, 0.25), (30, 1.0), (99, 1.0)):
        batch = small_batch(V21, step=step)
        passed, targets = objective.predict(batch), objective.targets(objective.encoder, batch)
        assert targets is not None and passed.prediction_MO is not None and targets.shape == (3, 32, 96)
        each = (passed.prediction_MO - targets.flatten(0, 1)[batch.masks.kept.source]).abs().mean(-1)
        each = each / distances(batch.masks, V21.grid).sqrt()
        sequence = batch.masks.kept_M // 32
        by_sequence = torch.stack([each[sequence == s].mean() for s in range(6)])
        output = objective(batch, targets)
        torch.testing.assert_close(output.parts["context"], 0.5 * rise * by_sequence.mean().detach())
        hidden = torch.stack([output.parts["mask0"], output.parts["mask1"]]).mean()
        torch.testing.assert_close(output.loss.detach(), hidden + output.parts["context"])


def test_each_level_of_a_target_is_normed_by_itself() -> None:
    objective = woken(make(V21))
    batch = small_batch(V21)
    assert objective.encoder is not None
    targets = objective.targets(objective.encoder, batch)
    assert targets is not None
    for level in targets.split(48, dim=-1):
        torch.testing.assert_close(level.mean(-1), torch.zeros(3, 32), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.var(-1, unbiased=False), torch.ones(3, 32), atol=1e-2, rtol=0)


def test_pictures_and_clips_of_a_batch_lose_what_they_lose_alone() -> None:
    objective = woken(make(V21))

    def loss(first: int, pictures: tuple[bool, ...]) -> torch.Tensor:
        batch = small_batch(V21, len(pictures), first, step=20, pictures=pictures)
        assert objective.encoder is not None
        found: torch.Tensor = objective(batch, objective.targets(objective.encoder, batch)).loss
        return found

    together = loss(0, (False, True, False))
    alone = [loss(0, (False,)), loss(1, (True,)), loss(2, (False,))]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)


def test_pictures_may_weigh_otherwise_in_the_context_loss() -> None:
    settings = {"weight": 0.5, "picture_weight": 0.7, "by_distance": False, "warmup": [0, 0]}
    config = small_config(
        {"kind": "masked_latent", "masks": MASKS, "context_loss": settings}, encoder={"pictures": "own"}
    )
    assert config.objective.kind == "masked_latent" and config.objective.context_loss is not None
    masks = small_batch(config, 2, pictures=(True, False)).masks
    weights = context_weights(config.objective.context_loss, masks, config.grid, 0)
    is_picture = masks.kept.source // 32 == 0
    assert weights[is_picture].tolist() == pytest.approx([0.7] * int(is_picture.sum()))
    assert weights[~is_picture].tolist() == pytest.approx([0.5] * int((~is_picture).sum()))
