"""Gradients clipped module by module, against the same with numbers of Python; and what is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.optim import clip_modules

MODULES = ("encoder", "predictor")


def gradients() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(3)
    sizes = {"encoder.a": 7, "encoder.b": 30, "predictor.a": 5, "predictor.b": 1}
    return [(name, torch.randn(size) * (4 if name[0] == "e" else 0.1)) for name, size in sizes.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [1.0, 1e-3, math.inf])
def test_each_module_is_brought_to_the_limit_by_itself(dtype: torch.dtype, limit: float) -> None:
    found = [(name, gradient.to(dtype)) for name, gradient in gradients()]
    before = {name: gradient.tolist() for name, gradient in found}
    total = clip_modules(found, MODULES, limit)
    norm = {m: math.sqrt(sum(x * x for n in before if n.startswith(m) for x in before[n])) for m in MODULES}
    assert float(total) == pytest.approx(math.hypot(*norm.values()), rel=1e-5)
    for name, gradient in found:
        own = norm[name.partition(".")[0]]
        scale = limit / (own + 1e-6) if own > limit else 1.0
        wanted = torch.tensor(before[name]) * scale
        assert torch.allclose(gradient.float(), wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_to_be_seen(bad: float) -> None:
    """The other module may be scaled; a bad gradient is not made to look like a good one."""
    found = gradients()
    found[0][1][2] = bad
    assert not math.isfinite(float(clip_modules(found, MODULES, 1.0)))
    assert not torch.isfinite(found[0][1][2])


def test_squares_past_float32_are_not_scaled_to_nothing() -> None:
    found = [("encoder.a", torch.full((4,), 1e30)), ("predictor.a", torch.ones(2))]
    assert math.isinf(float(clip_modules(found, MODULES, 1.0)))
    assert torch.equal(found[0][1], torch.full((4,), 1e30))


def test_a_rank_may_own_nothing_of_a_module() -> None:
    found = [("predictor.a", torch.full((4,), 3.0))]
    total = clip_modules(found, MODULES, 1.0, lambda sums: sums + torch.tensor([16.0, 0.0]))
    assert float(total) == pytest.approx(math.sqrt(36 + 16))
    assert torch.allclose(found[0][1], torch.full((4,), 0.5))
