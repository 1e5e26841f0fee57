"""The action-conditioned predictor: nothing later changes what was said before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import EncoderConfig, PredictorConfig
from pretrain.model.actions import ActionPredictor

ENCODER = EncoderConfig(preset="vit_tiny", width=48, depth=1, heads=2, patch=8)
GRID = (4, 3, 3)


def make(action_size: int = 3, state_size: int = 5, rope: str = "vjepa2", **changes: Any) -> ActionPredictor:
    encoder = ENCODER.model_copy(update={"rope": rope})
    config = PredictorConfig(depth=2, width=24, heads=2, **changes)
    knows_all = config.says == "change"
    predictor = ActionPredictor(config, encoder, GRID, action_size, state_size, has_mask_token=not knows_all)
    for parameter in predictor.parameters():
        parameter.data.fill_(float("nan"))
    predictor.initialise(torch.Generator().manual_seed(0))
    assert all(torch.isfinite(p).all() for p in predictor.parameters()), "no weight is left as it was"
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return predictor


def inputs(moments: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "features": torch.randn(2, moments, 9, 48, generator=generator),
        "actions": torch.randn(2, moments, 3, generator=generator),
        "states": torch.randn(2, moments, 5, generator=generator),
    }


def said(predictor: ActionPredictor, x: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = predictor(x["features"], x["actions"], x["states"]).detach()
    return found


@settings(max_examples=30, deadline=None)
@given(
    what=st.sampled_from(["features", "actions", "states"]),
    moment=st.integers(0, 3),
    clip=st.integers(0, 1),
    rope=st.sampled_from(["vjepa2", "interleaved", "none"]),
    told=st.sampled_from(["tokens", "added"]),
)
def test_a_change_at_a_moment_changes_nothing_before_it(
    what: str, moment: int, clip: int, rope: str, told: str
) -> None:
    predictor, x = make(rope=rope, told=told), inputs()
    before = said(predictor, x)
    x[what][clip, moment] += 1.0
    change = (said(predictor, x) - before).abs().amax((2, 3))
    assert float(change[clip, :moment].sum()) == 0.0
    assert bool((change[clip, moment:] > 1e-5).all()), "and everything from there on"
    assert float(change[1 - clip].sum()) == 0.0


@pytest.mark.parametrize("rope", ["vjepa2", "interleaved", "none"])
def test_fewer_moments_are_the_first_ones(rope: str) -> None:
    """What a rollout relies on: the first moments say the same however many follow."""
    predictor, x = make(rope=rope), inputs()
    first = {name: value[:, :2] for name, value in x.items()}
    torch.testing.assert_close(said(predictor, x)[:, :2], said(predictor, first), atol=1e-5, rtol=0)


def test_mask_tokens_stand_for_what_is_not_known() -> None:
    predictor, x = make(), inputs()
    is_known = torch.tensor([[True, True, False, False], [True, False, False, False]])
    before = predictor(x["features"], x["actions"], x["states"], is_known)
    changed = x["features"].clone()
    changed[~is_known] = 7.0
    torch.testing.assert_close(predictor(changed, x["actions"], x["states"], is_known), before)


@pytest.mark.parametrize(("actions", "states"), [(0, 0), (3, 0), (0, 5)])
def test_actions_and_states_may_be_absent(actions: int, states: int) -> None:
    predictor, x = make(actions, states), inputs()
    out = predictor(x["features"], x["actions"] if actions else None, x["states"] if states else None)
    assert out.shape == (2, 4, 9, 48)
    names = {name.split(".")[0] for name, _ in predictor.named_parameters()}
    assert ("embed_action" in names, "embed_state" in names) == (bool(actions), bool(states))


def test_a_predictor_of_changes_begins_with_a_copy_and_adds_what_it_says() -> None:
    config = PredictorConfig(depth=2, width=24, heads=2, says="change")
    fresh = ActionPredictor(config, ENCODER, GRID, 3, 5)
    fresh.initialise(torch.Generator().manual_seed(0))
    x = inputs()
    assert torch.equal(said(fresh, x), x["features"])
    plain, changes = make(), make(says="change")
    changes.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "mask_token"})
    torch.testing.assert_close(said(changes, x), x["features"] + said(plain, x))


def test_actions_are_divided_by_their_scale() -> None:
    x = inputs()
    ten_times = x | {"actions": 10 * x["actions"]}
    torch.testing.assert_close(said(make(action_scale=10.0), ten_times), said(make(), x))
