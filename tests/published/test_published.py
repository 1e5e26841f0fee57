"""Losses, features and gradients that the code Meta released computes, from the same numbers: outputs.json.

Weights go in by way of a .pt in their layout, so that names, positions, levels, objective and masks are all
held to what is published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.model.actions import ActionPredictor
from pretrain.model.positions import sincos_table
from pretrain.objective.base import Batch
from pretrain.objective.hidden import HiddenObjective
from pretrain.objective.make import make_objective
from pretrain.weights.base import Weights, build_encoder, build_predictor
from pretrain.weights.meta import Hints
from pretrain.weights.read import read_weights
from tests.pretrain.meta_layout import meta_encoder, meta_predictor, save, wrapped
from tests.published.cases import (
    ACTION,
    CASES,
    CLIPS,
    FEATURE_STRIDE,
    FRAMES,
    HEADS,
    PATCH,
    SIZE,
    STEP,
    WIDTH,
    Case,
    masks_of,
    numbers,
)

OUTPUTS: dict[str, Any] = json.loads(Path(__file__).with_name("outputs.json").read_text())
MASKED = [name for name, case in CASES.items() if case.source != "vjepa2-ac"]


def imported(case: Case, path: Path, of: str) -> Weights:
    """The case's weights out of a training checkpoint in Meta's layout."""
    rope = case.config.model.encoder.rope
    tables = {"pos_embed": sincos_table(case.config.grid, WIDTH)[None]} if rope == "none" else {}
    encoders = {
        key: wrapped(meta_encoder(case.weights(part), case.norms) | tables)
        for key, part in (("encoder", "context"), ("target_encoder", "target"))
    }
    predictor = wrapped(meta_predictor(case.weights("context")))
    save(path, case.weights("target"), **encoders, predictor=predictor)
    hints = Hints(
        heads=HEADS, predictor_heads=HEADS, frames=FRAMES, size=SIZE, rope=rope if rope == "none" else None
    )
    return read_weights(path, hints.model_copy(update={"of": of}))


def same_gradients(case: Case, found: dict[str, Tensor], wanted: dict[str, float]) -> None:
    """Norms of all gradients, by Meta's names; what has none there (the other modality's) is zero here."""
    gradients = Weights(case.weights("context").description, found)
    ours = {f"encoder.{name}": t for name, t in meta_encoder(gradients, case.norms).items()}
    ours |= {f"predictor.{name}": t for name, t in meta_predictor(gradients).items()}
    assert wanted.keys() <= ours.keys()
    for name, gradient in ours.items():
        assert float(gradient.norm()) == pytest.approx(wanted.get(name, 0.0), rel=2e-5, abs=1e-7), name


@pytest.mark.parametrize("name", MASKED)
def test_loss_features_and_gradients_are_those_of_the_released_code(name: str, tmp_path: Path) -> None:
    case, wanted = CASES[name], OUTPUTS[name]
    objective = make_objective(case.config)
    assert isinstance(objective, HiddenObjective)
    weights = imported(case, tmp_path / "meta.pt", "context")
    assert weights.description.model == case.config.model
    objective.encoder.load_state_dict(weights.part("encoder"))
    objective.predictor.load_state_dict(weights.part("predictor"))
    target = build_encoder(imported(case, tmp_path / "meta.pt", "target"))

    clips = case.clips()
    frames = clips.expand(-1, -1, FRAMES, -1, -1)  # of a picture; a clip has as many
    num_tokens = FRAMES // 2 * (SIZE // PATCH) ** 2
    masks = masks_of(wanted["masks"], num_tokens, are_pictures=case.are_pictures)
    batch = Batch(STEP, tuple(range(CLIPS)), tuple("abc"), frames, masks)
    targets = objective.targets(target, batch)
    assert targets is not None
    own = targets[:, : (SIZE // PATCH) ** 2] if case.are_pictures else targets
    torch.testing.assert_close(
        own[:, -1, ::FEATURE_STRIDE], torch.tensor(wanted["features"]), atol=1e-5, rtol=0
    )

    output = objective(batch, targets)
    assert float(output.loss.detach()) == pytest.approx(wanted["loss"], rel=1e-6)
    output.loss.backward()
    found = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    same_gradients(case, found, wanted["gradients"])


def test_the_action_predictor_says_what_the_released_one_says(tmp_path: Path) -> None:
    case, wanted = CASES["V-JEPA 2-AC"], OUTPUTS["V-JEPA 2-AC"]
    predictor = build_predictor(imported(case, tmp_path / "meta.pt", "target")).requires_grad_()
    assert isinstance(predictor, ActionPredictor)
    tokens = (SIZE // PATCH) ** 2
    said = predictor(
        numbers("features", (CLIPS, FRAMES * tokens, WIDTH)).unflatten(1, (FRAMES, tokens)),
        numbers("actions", (CLIPS, FRAMES, ACTION)),
        numbers("states", (CLIPS, FRAMES, ACTION)),
    ).flatten(1, 2)
    torch.testing.assert_close(
        said[:, -1, ::FEATURE_STRIDE].detach(), torch.tensor(wanted["features"]), atol=1e-5, rtol=0
    )
    loss = (said - numbers("wanted", tuple(said.shape))).abs().mean()
    assert float(loss.detach()) == pytest.approx(wanted["loss"], rel=1e-6)
    loss.backward()
    found = {f"predictor.{key}": p.grad for key, p in predictor.named_parameters() if p.grad is not None}
    same_gradients(case, found, wanted["gradients"])
