"""Every kind of objective: what its loss is, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from data_pipeline.errors import DataError
from pretrain.objective.action import ActionLatent
from pretrain.objective.contrastive import info_nce
from pretrain.objective.future import FutureLatent
from pretrain.objective.make import first_encoder
from pretrain.objective.pixel import pixels_of
from pretrain.objective.regularise import pooled, regularise, sigreg_statistic, vicreg_terms
from tests.pretrain.small_objective import (
    FROZEN,
    KINDS,
    config_of,
    make,
    passed,
    small_batch,
    small_config,
)


@pytest.mark.parametrize(
    "name", [name for name in KINDS if not name.startswith(("future", "action", "states"))]
)
def test_clips_are_embedded_once_and_encoded_in_one_pass_for_all_mask_kinds(name: str) -> None:
    config = config_of(name)
    objective, batch = make(config), small_batch(config, 3)
    target = first_encoder(objective, config)
    passes: dict[str, list[int]] = {}

    def watch(part: str, module: torch.nn.Module) -> None:
        passes[part] = []
        module.register_forward_hook(lambda _, given, __: passes[part].append(len(given[0])))

    for whose, encoder in (("context", objective.encoder), ("target", target)):
        assert encoder is not None
        watch(f"{whose} embeds", encoder.embed)
        for number, block in enumerate(encoder.blocks):
            watch(f"{whose} block {number}", block)
    predictor = objective.get_submodule("predictor")
    watch("predictor block", predictor.get_submodule("blocks.0"))
    objective(batch, objective.targets(target, batch))
    kept, hidden = len(batch.masks.kept_M), len(batch.masks.hidden_P)
    assert batch.masks.num_sequences == 2 * 3, "two mask kinds of three clips"
    assert passes["context embeds"] == [3]
    assert passes["context block 0"] == passes["context block 1"] == [kept]
    assert passes["predictor block"] == [kept + hidden]
    sees = [] if name == "pixel" else [3]
    assert passes["target embeds"] == sees
    assert passes["target block 0"] == passes["target block 1"] == [3 * 32 for _ in sees]


@pytest.mark.parametrize("name", KINDS)
def test_a_pass_is_a_function_of_weights_and_batch(name: str) -> None:
    config = config_of(name)
    first, second = (passed(config, small_batch(config))[2] for _ in range(2))
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("contrastive", "masked, raster")])
def test_a_batch_loses_what_its_halves_lose_on_average(name: str) -> None:
    """Why the loss and its gradient are the same for any number of ranks and micro-batches."""
    config = config_of(name)
    whole = passed(config, small_batch(config, 4))[2].loss
    halves = [passed(config, small_batch(config, 2, first))[2].loss for first in (0, 2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean(), atol=1e-5, rtol=1e-5)


def test_pixels_are_those_of_the_token_normalised_by_colour() -> None:
    config = config_of("pixel")
    batch = small_batch(config)
    objective, target, output = passed(config, batch)
    assert objective.targets(target, batch) is None, "no target encoder is run"
    encoder = objective.encoder
    assert encoder is not None
    found = pixels_of(batch.clips, encoder, normalise=True)
    t, row, column = 1, 2, 3
    cut = batch.clips[2, :, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten(1)
    wanted = (cut - cut.mean(1, keepdim=True)) / (cut.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(found[2, (t * 4 + row) * 4 + column], wanted.flatten())
    said = output.seen["prediction"].features_MD
    assert said.shape[1] == 48, "health looks at as many numbers as a feature has"
    plain = pixels_of(batch.clips, encoder, normalise=False)
    torch.testing.assert_close(plain[2, (t * 4 + row) * 4 + column], cut.flatten())
    errors, rows = [], objective.predict(batch).prediction_PO.split(batch.masks.hidden_lengths)  # type: ignore[operator]
    for sequence, own in enumerate(rows):
        places = batch.masks.hidden_P[batch.masks.hidden_P // 32 == sequence]
        errors.append(F.mse_loss(own, found[batch.masks.clips[sequence], places % 32]))
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())


def test_info_nce_finds_its_own_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, said = torch.randn(2, 6, 8, generator=generator)
    source = torch.tensor([0, 1, 2, 3, 4, 1])  # the last is the second's token under another mask kind
    found, share = info_nce(said, wanted, source, 0.5)
    losses, hits = [], 0
    for row in range(6):
        scores = {
            other: math.exp(float(F.cosine_similarity(said[row], wanted[other], dim=0)) / 0.5)
            for other in range(6)
            if other == row or source[other] != source[row]
        }
        losses.append(-math.log(scores[row] / sum(scores.values())))
        hits += max(scores, key=scores.__getitem__) == row
    assert float(found) == pytest.approx(sum(losses) / 6, abs=1e-5)
    assert float(share) == pytest.approx(hits / 6)
    perfect, all_found = info_nce(wanted, wanted, torch.arange(6), 0.01)
    assert float(perfect) < 1e-3 and float(all_found) == 1.0


def test_the_x_encoder_sees_the_past_alone() -> None:
    config = config_of("future")
    batch = small_batch(config)
    objective, target, output = passed(config, batch)
    later = batch.clips.clone()
    later[:, :, 2:] += 3.0
    changed = objective(replace(batch, clips=later), objective.targets(target, batch))
    assert torch.equal(output.seen["prediction"].features_MD, changed.seen["prediction"].features_MD)
    earlier = batch.clips.clone()
    earlier[:, :, :2] += 3.0
    truth = objective.targets(target, batch)
    assert truth is not None
    again = objective.targets(target, replace(batch, clips=earlier))
    assert again is not None and torch.equal(truth, again), "y is the future alone"
    of_clip = config_of("future, of the clip")
    assert isinstance(objective, FutureLatent)
    looks_back = make(of_clip)
    assert not torch.equal(
        looks_back.targets(target, small_batch(of_clip)),  # type: ignore[arg-type]
        looks_back.targets(target, replace(small_batch(of_clip), clips=earlier)),  # type: ignore[arg-type]
    )


def test_the_future_is_guessed_from_the_action_too() -> None:
    config = config_of("future")
    batch = small_batch(config)
    objective, target, output = passed(config, batch)
    assert batch.actions is not None
    changed = objective(replace(batch, actions=batch.actions + 1.0), objective.targets(target, batch))
    assert not torch.allclose(
        output.seen["prediction"].features_MD, changed.seen["prediction"].features_MD, atol=1e-3
    )
    without = config_of("future", objective={"action_size": 0})
    objective, target, output = passed(without, batch)
    changed = objective(replace(batch, actions=None), objective.targets(target, batch))
    assert torch.equal(output.loss, changed.loss), "with action_size 0 none is told"


def test_actions_that_the_data_has_not_are_an_error() -> None:
    config = config_of("future")
    batch = small_batch(config)
    for actions, words in ((None, "none for every clip"), (torch.zeros(3, 4, 7), "have 7")):
        with pytest.raises(DataError, match=words):
            passed(config, replace(batch, actions=actions))


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_v_jepa_2_ac_teaches_and_rolls_out(loss: str, power: int) -> None:
    """Both losses written out again: next frames from true ones, then from guessed ones."""
    config = config_of("action", objective={"rollout_steps": 3, "loss": loss})
    batch = small_batch(config)
    objective, target, output = passed(config, batch)
    assert isinstance(objective, ActionLatent) and batch.actions is not None and batch.states is not None
    frames = []
    for t in range(4):
        still = batch.clips[:, :, t : t + 1].repeat(1, 1, 2, 1, 1)
        frames.append(F.layer_norm(target(still), (48,)))
    h = torch.stack(frames, dim=1).detach()  # (B, T, P, D)
    torch.testing.assert_close(objective.targets(target, batch), h, atol=1e-5, rtol=0)

    def step(z: torch.Tensor) -> torch.Tensor:
        assert batch.actions is not None and batch.states is not None
        said = objective.predictor(z, batch.actions[:, : z.shape[1]], batch.states[:, : z.shape[1]])
        return F.layer_norm(said, (48,))

    teacher = ((step(h[:, :3]) - h[:, 1:]).abs() ** power).mean()
    z = h[:, :1]
    for _ in range(3):
        z = torch.cat([z, step(z)[:, -1:]], dim=1)
    rollout = ((z[:, 1:] - h[:, 1:4]).abs() ** power).mean()
    torch.testing.assert_close(output.parts["teacher_forcing"], teacher.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.parts["rollout"], rollout.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, teacher + rollout, atol=1e-5, rtol=1e-5)
    assert output.guess is not None
    trivial = output.guess.losses()
    torch.testing.assert_close(trivial["prediction"], teacher.detach(), atol=1e-5, rtol=1e-5)
    copied = ((h[:, :3] - h[:, 1:]).abs() ** power).mean()
    torch.testing.assert_close(trivial["copy"], copied, atol=1e-5, rtol=1e-5)


def test_the_published_loss_of_v_jepa_2_ac_is_the_usual_one() -> None:
    config = config_of("action")
    assert config.objective.kind == "action_latent"
    assert config.objective.loss == "l1"


@pytest.mark.parametrize("name", ["masked", "contrastive", "future"])
def test_without_a_stop_gradient_the_target_pulls_too(name: str) -> None:
    def gradient(*, stop: bool) -> torch.Tensor:
        config = config_of(name, target={"kind": "online", "stop_gradient": stop})
        objective, batch = make(config), small_batch(config)
        assert objective.encoder is not None
        objective(batch, None).loss.backward()
        grad = objective.encoder.embed.weight.grad
        assert grad is not None
        return grad

    stopped, pulled = gradient(stop=True), gradient(stop=False)
    assert not torch.allclose(stopped, pulled, atol=1e-6)
    config = config_of(name)
    objective, batch = make(config), small_batch(config)
    assert objective.encoder is not None
    objective(batch, objective.targets(objective.encoder, batch)).loss.backward()
    assert objective.encoder.embed.weight.grad is not None
    torch.testing.assert_close(objective.encoder.embed.weight.grad, stopped, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["masked", "future"])
def test_an_average_without_a_stop_has_its_own_values_and_the_encoders_gradient(name: str) -> None:
    config = config_of(name, target={"kind": "ema", "stop_gradient": False})
    objective, batch = make(config), small_batch(config)
    assert objective.encoder is not None
    embedding = objective.encoder.embed.weight
    average = first_encoder(objective, config)
    with torch.no_grad():
        for weight in average.parameters():
            weight.mul_(0.7)
    targets = objective.targets(average, batch)
    assert targets is not None
    loss = objective(batch, targets).loss
    (own,) = torch.autograd.grad(loss, embedding)

    stopped_config = config_of(name)
    stopped = make(stopped_config)
    assert stopped.encoder is not None
    alone = stopped(batch, targets)
    torch.testing.assert_close(loss, alone.loss)
    (without,) = torch.autograd.grad(alone.loss, stopped.encoder.embed.weight)

    # What is missing: the loss's slope at the targets, taken through the encoder's own features.
    given = targets.clone().requires_grad_()
    (slope,) = torch.autograd.grad(stopped(batch, given).loss, given)
    read = objective.read(objective.encoder, batch)
    (pulled,) = torch.autograd.grad((read * slope).sum(), embedding)
    torch.testing.assert_close(own, without + pulled, atol=1e-6, rtol=1e-4)


def test_vicreg_is_its_formula() -> None:
    z = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 0.5, 1, 2, 3, 4])
    variance, covariance = vicreg_terms(z)
    std = (z.var(0) + 1e-4).sqrt()
    assert float(variance) == pytest.approx(float((1 - std).clamp(min=0).mean()), abs=1e-6)
    matrix = torch.cov(z.T)
    off = (matrix - torch.diag(matrix.diag())).square().sum() / 6
    assert float(covariance) == pytest.approx(float(off), rel=1e-4)
    collapsed, _ = vicreg_terms(torch.ones(20, 6))
    assert float(collapsed) == pytest.approx(0.99, abs=1e-3)


def test_sigreg_is_least_where_features_are_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(400, 16, generator=generator)

    def statistic(z: torch.Tensor) -> float:
        return float(sigreg_statistic(z, 64, torch.Generator().manual_seed(1)))

    at_rest = statistic(normal)
    assert at_rest < 2.0, "its expectation does not grow with the number of samples"
    for other in (torch.zeros(400, 16), 3 * normal, normal + 1.0, normal[:, :1].expand(400, 16) * 4.0):
        assert statistic(other) > 10 * at_rest
    # one direction written out: B times the weighted integral over t of |empirical - normal|²
    one = normal[:50, :1]
    t = torch.linspace(-5, 5, 17)
    empirical = torch.exp(1j * one * t).mean(0)
    inside = (empirical - torch.exp(-(t**2) / 2)).abs() ** 2 * torch.exp(-(t**2) / 2)
    assert statistic(one) == pytest.approx(50 * float(torch.trapezoid(inside, t)), rel=1e-4)


def test_regularisers_look_at_the_mean_of_each_clips_context() -> None:
    config = config_of("masked", objective={"regularisers": [{"kind": "vicreg"}, {"kind": "sigreg"}]})
    batch = small_batch(config)
    _, _, output = passed(config, batch)
    assert {"mask0", "mask1", "variance", "covariance", "sigreg"} == set(output.parts)
    features = output.seen["context"].features_MD
    means = [features[batch.masks.kept_M // 32 == s].mean(0) for s in range(6)]
    torch.testing.assert_close(
        torch.cat(pooled(features, batch.masks)), torch.stack(means), atol=1e-5, rtol=0
    )
    assert config.objective.kind == "masked_latent"
    again = regularise(config.objective.regularisers, features, batch.masks, 0, 0)
    for name, term in again.items():
        torch.testing.assert_close(term, output.parts[name])
    total = torch.stack([output.parts["mask0"], output.parts["mask1"]]).mean() + sum(again.values())
    torch.testing.assert_close(output.loss.detach(), total)
    single = small_batch(config, 1)
    _, _, alone = passed(config, single)
    assert float(alone.parts["variance"]) == 0.0, "one clip has no spread"


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"target": {"kind": "frozen", "stop_gradient": False}}, "target.stop_gradient"),
        ({"objective": {"kind": "action_latent", "action_size": 3}}, "target.kind"),
        (
            {"objective": {"kind": "action_latent", "action_size": 3, "rollout_steps": 4}, **FROZEN},
            "data.frames",
        ),
        (
            {"objective": {"kind": "future_latent"}, "encoder": {"levels": [1, 2]}},
            "model.encoder.levels",
        ),
        (
            {"objective": {"kind": "future_latent"}, "encoder": {"pictures": "own"}},
            "model.encoder.pictures",
        ),
        ({"objective": {"kind": "future_latent", "action_size": 3}}, "augment.hflip"),
        ({"objective": {"kind": "action_latent", "action_size": 3}, **FROZEN}, "augment.hflip"),
        ({"encoder": {"rope": "none", "rope_span": 4}}, "model.encoder.rope_span"),
        (
            {"objective": {"kind": "pixel"}, "target": {"kind": "online", "stop_gradient": False}},
            "target.stop_gradient",
        ),
        ({"objective": {"kind": "future_latent"}, "predictor": {"says": "change"}}, "model.predictor.says"),
        ({"objective": {"kind": "pixel"}, "predictor": {"told": "added"}}, "model.predictor.told"),
        (
            {"objective": {"kind": "masked_latent"}, "predictor": {"action_scale": 2.0}},
            "model.predictor.action_scale",
        ),
        (
            {"objective": {"kind": "future_latent"}, "predictor": {"mask_tokens": 2}},
            "model.predictor.mask_tokens",
        ),
        (
            {
                "objective": {"kind": "masked_latent", "masks": [{"kind": "future"}]},
                "encoder": {"tubelet": 4},
            },
            "data.frames",
        ),
        (
            {"objective": {"kind": "pixel", "picture_masks": [{"kind": "future"}]}},
            "objective.picture_masks",
        ),
        ({"objective": {"kind": "future_latent"}, "encoder": {"tubelet": 4}}, "data.frames"),
    ],
)
def test_what_does_not_go_together_is_named(sections: dict[str, Any], key: str) -> None:
    config = small_config(sections.pop("objective", None), **sections)
    assert key in [found[0] for found in config.problems()]


@pytest.mark.parametrize("name", KINDS)
def test_what_goes_together_is_not_refused(name: str) -> None:
    assert not config_of(name).problems()


def test_clips_may_be_mirrored_where_no_action_is_told() -> None:
    assert not config_of("future", objective={"action_size": 0}, augment={"hflip": True}).problems()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="masked_latent"):
        small_config({"kind": "masked"})
