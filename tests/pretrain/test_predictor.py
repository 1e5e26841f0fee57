"""The masked predictor: what it depends on, and that packing changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.config import EncoderConfig, PredictorConfig
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig
from pretrain.masks import Masks, sample_masks
from pretrain.model.positions import Grid
from pretrain.model.predictor import Predictor

GRID = (2, 4, 4)
ENCODER = EncoderConfig(preset="vit_tiny", width=48, depth=1, heads=2, patch=8)
KINDS = (BlockMaskConfig(blocks=3, spatial_scale=(0.2, 0.2)), FutureMaskConfig())


def make(
    encoder: EncoderConfig = ENCODER, kinds: int = 2, tokens: int | None = None, **given: bool
) -> Predictor:
    config = PredictorConfig(depth=2, width=24, heads=2, mask_tokens=tokens)
    predictor = Predictor(config, encoder, GRID, 2, **given)  # type: ignore[arg-type]
    for parameter in predictor.parameters():
        parameter.data.fill_(float("nan"))
    predictor.initialise(torch.Generator().manual_seed(0))
    assert all(torch.isfinite(p).all() for p in predictor.parameters()), "no weight is left as it was"
    assert float(predictor.mask_tokens.detach().abs().max()) == 0.0, "as published"
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return predictor


def drawn(clips: int = 2, **given: str) -> tuple[Masks, torch.Tensor]:
    masks = sample_masks(KINDS, GRID, 0, 0, range(clips), **given)  # type: ignore[arg-type]
    return masks, torch.randn(len(masks.kept_M), 48, generator=torch.Generator().manual_seed(3))


def alone(masks: Masks, context: torch.Tensor, sequence: int) -> tuple[Masks, torch.Tensor]:
    """One sequence of a batch as a batch of its own."""

    def own(places: torch.Tensor) -> torch.Tensor:
        return places[places // 32 == sequence] % 32

    single = Masks(
        32,
        2,
        (0,),
        (masks.kinds[sequence],),
        (False,),
        own(masks.kept_M),
        own(masks.hidden_P),
        (masks.kept_lengths[sequence],),
        (masks.hidden_lengths[sequence],),
    )
    return single, context[masks.kept_M // 32 == sequence]


def test_a_sequence_depends_on_no_other() -> None:
    for truncated in ({}, {"truncate": "raster"}):
        (masks, context), predictor = drawn(3, **truncated), make(says_context=True)
        said, said_context = predictor(context, masks)
        assert said_context is not None
        for sequence in range(masks.num_sequences):
            own, own_context = predictor(*reversed(alone(masks, context, sequence)))
            torch.testing.assert_close(said[masks.hidden_P // 32 == sequence], own, atol=1e-5, rtol=0)
            assert own_context is not None
            torch.testing.assert_close(
                said_context[masks.kept_M // 32 == sequence], own_context, atol=1e-5, rtol=0
            )


def any_masks(num_tokens: int, lengths: list[tuple[int, int]], kinds: int, seed: int) -> Masks:
    """A sequence for each (kept, hidden), at random places; some tokens may be neither."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(num_tokens, generator=generator) for _ in lengths]

    def places(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([number * num_tokens + part.sort().values for number, part in enumerate(parts)])

    return Masks(
        num_tokens,
        kinds,
        tuple(range(len(lengths))),
        tuple(number % kinds for number in range(len(lengths))),
        (False,) * len(lengths),
        places([order[:kept] for order, (kept, _) in zip(orders, lengths, strict=True)]),
        places([order[kept:][:hidden] for order, (kept, hidden) in zip(orders, lengths, strict=True)]),
        tuple(kept for kept, _ in lengths),
        tuple(hidden for _, hidden in lengths),
    )


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4)),
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    kinds=st.integers(1, 3),
    rope=st.sampled_from(["vjepa2", "interleaved", "none"]),
    levels=st.sampled_from([(), (1, 2)]),
    out_width=st.sampled_from([None, 7]),
    says_context=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_predictions_have_the_shape_dtype_and_values_that_follow_from_the_input(
    grid: Grid,
    shares: list[tuple[float, float]],
    kinds: int,
    rope: str,
    levels: tuple[int, ...],
    out_width: int | None,
    says_context: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    tokens = math.prod(grid)
    kept = [1 + int(share * (tokens - 2)) for share, _ in shares]
    lengths = [(k, 1 + int(share * (tokens - k - 1))) for k, (_, share) in zip(kept, shares, strict=True)]
    masks = any_masks(tokens, lengths, kinds, seed)
    shape = {"preset": "vit_tiny", "width": 24, "depth": 2, "heads": 2}
    encoder = EncoderConfig.model_validate({**shape, "rope": rope, "levels": levels})
    config = PredictorConfig(depth=2, width=12, heads=2)
    predictor = Predictor(config, encoder, grid, kinds, out_width, says_context=says_context)
    predictor.initialise(torch.Generator().manual_seed(seed))
    predictor.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(len(masks.kept_M), 24 * encoder.num_levels, generator=generator).to(dtype)
    with torch.no_grad():
        first, again = (predictor(context, masks) for _ in range(2))
    width = out_width or 24 * encoder.num_levels
    assert first[0].shape == (len(masks.hidden_P), width)
    assert (first[1] is not None) == says_context
    if says_context:
        assert first[1].shape == (len(masks.kept_M), width)
    for said, repeated in zip(first, again, strict=True):
        if said is not None:
            assert said.dtype == dtype and bool(torch.isfinite(said).all()) and torch.equal(said, repeated)


def test_mask_kinds_have_mask_tokens_of_their_own_taken_in_turn() -> None:
    masks, context = drawn(1)
    single, own = alone(masks, context, 0)
    as_kind = lambda kind: replace(single, kinds=(kind,))  # noqa: E731
    predictor = make()
    assert not torch.allclose(predictor(own, as_kind(0))[0], predictor(own, as_kind(1))[0])
    torch.testing.assert_close(predictor(own, as_kind(0))[0], predictor(own, as_kind(2))[0])
    shared = make(tokens=1)
    torch.testing.assert_close(shared(own, as_kind(0))[0], shared(own, as_kind(1))[0])
    assert len(make(tokens=10).mask_tokens) == 10, "as released"


def test_the_order_of_tokens_is_their_place() -> None:
    """A context token moved to another place is another context."""
    masks, context = drawn(1)
    single, own = alone(masks, context, 1)
    swapped = own.clone()
    swapped[[0, 1]] = own[[1, 0]]
    predictor = make()
    assert not torch.allclose(predictor(own, single)[0], predictor(swapped, single)[0])


def test_several_levels_come_in_and_go_out() -> None:
    encoder = EncoderConfig(preset="vit_tiny", width=48, depth=2, heads=2, patch=8, levels=(1, 2))
    predictor = make(encoder)
    masks, context = drawn()
    said, said_context = predictor(torch.cat([context, context], dim=1), masks)
    assert said.shape == (len(masks.hidden_P), 96) and said_context is None
    assert isinstance(predictor.embed, nn.Sequential)


def test_pictures_are_told_from_clips() -> None:
    encoder = EncoderConfig(preset="vit_tiny", width=48, depth=1, heads=2, patch=8, pictures="own")
    predictor = make(encoder)
    masks, context = drawn(1)
    single, own = alone(masks, context, 0)
    as_picture = replace(single, pictures=(True,))
    assert not torch.allclose(predictor(own, single)[0], predictor(own, as_picture)[0])
