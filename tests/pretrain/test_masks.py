"""Masks: cover, never overlap, depend on coordinates alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pretrain.config import PUBLISHED_MASKS
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, MaskConfig, TubeMaskConfig
from pretrain.masks import Grid, box_size, hidden_in, hidden_union, sample_masks
from pretrain.rng import stream

GRIDS = st.tuples(st.integers(2, 8), st.integers(2, 14), st.integers(2, 14))
SHARES = st.tuples(st.floats(0.02, 0.5), st.floats(0.5, 1.0))
BLOCKS = st.builds(
    BlockMaskConfig,
    blocks=st.integers(1, 8),
    spatial_scale=SHARES,
    temporal_scale=SHARES,
    max_temporal_keep=st.floats(0.0, 1.0),
    sizes=st.sampled_from(["batch", "clip"]),
)
KINDS = st.one_of(
    BLOCKS,
    st.builds(FutureMaskConfig, past=SHARES),
    st.builds(TubeMaskConfig, hidden=st.floats(0.0, 1.0)),
)


def block(**settings: Any) -> BlockMaskConfig:
    return BlockMaskConfig.model_validate(settings)


@settings(max_examples=80, deadline=None)
@given(
    grid=GRIDS,
    kinds=st.lists(KINDS, min_size=1, max_size=3),
    clips=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_kept_and_hidden_name_every_place_once(
    grid: Grid, kinds: list[MaskConfig], clips: int, seed: int
) -> None:
    masks = sample_masks(kinds, grid, seed, 3, range(clips))
    places = torch.cat([masks.kept_M, masks.hidden_P]).sort().values
    tokens = grid[0] * grid[1] * grid[2]
    assert places.tolist() == list(range(len(kinds) * clips * tokens))
    assert min(masks.kept_lengths) >= 1, "a context to predict from"
    assert min(masks.hidden_lengths) >= 1, "something to predict"
    assert [k + h for k, h in zip(masks.kept_lengths, masks.hidden_lengths, strict=True)] == [tokens] * (
        len(kinds) * clips
    )
    assert masks.clips == tuple(range(clips)) * len(kinds)
    assert masks.kinds == tuple(kind for kind in range(len(kinds)) for _ in range(clips))


def test_a_sequence_points_at_its_own_clip() -> None:
    masks = sample_masks(PUBLISHED_MASKS, (2, 4, 4), 0, 0, [0, 1, 2])
    sequence = masks.kept_M // masks.num_tokens
    source = masks.kept.source
    assert torch.equal(source // masks.num_tokens, sequence % 3)
    assert torch.equal(source % masks.num_tokens, masks.kept_M % masks.num_tokens)
    assert sum(masks.shares) == pytest.approx(1.0)


def test_masks_of_a_clip_do_not_depend_on_its_batch() -> None:
    together = sample_masks(PUBLISHED_MASKS, (4, 8, 8), 5, 2, [10, 11, 12, 13])
    alone = sample_masks(PUBLISHED_MASKS, (4, 8, 8), 5, 2, [12])
    hidden = [
        (together.hidden_P[together.hidden_P // 256 == kind * 4 + 2] % 256).tolist() for kind in range(2)
    ]
    assert hidden == [(alone.hidden_P[alone.hidden_P // 256 == kind] % 256).tolist() for kind in range(2)]


def test_steps_and_clips_and_kinds_draw_differently() -> None:
    def drawn(seed: int, step: int, position: int) -> list[int]:
        return sample_masks(PUBLISHED_MASKS, (4, 14, 14), seed, step, [position]).hidden_P.tolist()

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({tuple(drawn(*at)) for at in [(0, 0, 0), (1, 0, 0), (0, 0, 1)]}) == 3


def test_a_box_has_the_published_size() -> None:
    square = block(blocks=1, spatial_scale=0.25, temporal_scale=0.5, ratio=(1.0, 1.0))
    assert box_size(square, (8, 16, 16), stream(0, "x")) == (4, 8, 8)
    tall = block(blocks=1, spatial_scale=0.25, ratio=(4.0, 4.0))
    assert box_size(tall, (8, 16, 16), stream(0, "x")) == (8, 16, 4)
    # the number of patches is cut to a whole one before its root is taken, as in the released collator:
    # 0.9 of 14 × 14 is 176.4, so 176 patches at aspect 1.5 make 16 × 11, of which 14 rows fit
    assert box_size(block(blocks=1, spatial_scale=0.9, ratio=(1.5, 1.5)), (8, 14, 14), stream(0, "x")) == (
        8,
        14,
        11,
    )


def test_scales_are_drawn_from_their_range() -> None:
    config = block(blocks=1, spatial_scale=(0.1, 0.5), temporal_scale=(0.25, 1.0), ratio=(1.0, 1.0))
    sizes = [box_size(config, (8, 16, 16), stream(0, "draw", n)) for n in range(300)]
    assert {t for t, _, _ in sizes} >= {2, 4, 6} and max(t for t, _, _ in sizes) <= 8
    areas = [h * w / 256 for _, h, w in sizes]
    assert min(areas) < 0.13 and max(areas) > 0.45
    assert np.mean(areas) == pytest.approx(0.3, abs=0.03)


def test_sizes_are_drawn_once_a_step_or_for_each_clip() -> None:
    def sizes(how: str) -> set[int]:
        config = block(blocks=1, spatial_scale=0.3, sizes=how)
        return set(sample_masks([config], (1, 16, 16), 0, 7, range(30)).hidden_lengths)

    assert len(sizes("batch")) == 1
    assert len(sizes("clip")) > 3


def test_published_masks_hide_most_of_a_clip() -> None:
    """V-JEPA reports that the long kind hides about 90 % of a clip, the short about three quarters."""
    grid = (8, 14, 14)
    shares = [
        np.mean([hidden_in(kind, grid, stream(0, "share", n), None).mean() for n in range(300)])
        for kind in PUBLISHED_MASKS
    ]
    assert 0.6 < shares[0] < 0.85
    assert 0.8 < shares[1] < 0.97


def test_boxes_lie_everywhere_equally_often_but_for_the_border() -> None:
    """A box of half the side covers a row as often as there are places for it that do."""
    config = block(blocks=1, spatial_scale=0.25, ratio=(1.0, 1.0))
    total = np.mean([hidden_in(config, (2, 8, 8), stream(1, "where", n), None) for n in range(4000)], axis=0)
    rows = np.array([sum(top <= row < top + 4 for top in range(5)) / 5 for row in range(8)])
    np.testing.assert_allclose(total, np.broadcast_to(np.outer(rows, rows), (2, 8, 8)), atol=0.04)


def test_every_frame_is_hidden_equally_often() -> None:
    half = block(blocks=1, spatial_scale=0.5, temporal_scale=1.0)
    total = sum(hidden_in(half, (8, 8, 8), stream(1, "frames", n), None).sum((1, 2)) for n in range(50))
    assert total.min() == total.max()


def test_all_after_the_frames_that_may_be_kept_is_hidden() -> None:
    config = block(blocks=2, spatial_scale=0.3, max_temporal_keep=0.5)
    hidden = hidden_in(config, (8, 8, 8), stream(0, "keep"), None)
    assert hidden[4:].all() and not hidden[:4].all()


def test_boxes_as_large_as_the_picture_leave_one_column() -> None:
    hidden = hidden_union(block(blocks=2, spatial_scale=1.0), (4, 3, 3), (4, 3, 3), stream(0, "all"))
    assert (~hidden).sum() == 4
    assert (~hidden).any(axis=0).sum() == 1


def test_the_future_is_hidden_and_the_past_kept() -> None:
    half = hidden_in(FutureMaskConfig(), (8, 3, 3), stream(0, "f"), None)
    assert not half[:4].any() and half[4:].all()
    drawn = [
        int(
            (~hidden_in(FutureMaskConfig(past=(0.25, 0.75)), (8, 2, 2), stream(0, "f", n), None))[
                :, 0, 0
            ].sum()
        )
        for n in range(200)
    ]
    assert set(drawn) == {2, 3, 4, 5, 6}
    all_past = hidden_in(FutureMaskConfig(past=(1.0, 1.0)), (8, 2, 2), stream(0, "f"), None)
    assert all_past[7:].all() and not all_past[:7].any(), "something is left to predict"


def test_tubes_hide_random_places_through_time() -> None:
    """V-JEPA's random tubes keep int(places × 0.1) of 14 × 14 places."""
    drawn = [hidden_in(TubeMaskConfig(hidden=0.9), (8, 14, 14), stream(0, "t", n), None) for n in range(600)]
    assert all((each == each[0]).all() for each in drawn)
    assert {int((~each[0]).sum()) for each in drawn} == {19}
    often = np.mean([~each[0] for each in drawn], axis=0)
    assert often.min() > 0.04 and often.max() < 0.16, "no place is favoured"


def test_raster_truncation_is_what_the_released_collator_does() -> None:
    grid, kinds = (4, 8, 8), PUBLISHED_MASKS
    whole = sample_masks(kinds, grid, 3, 9, range(6))
    cut = sample_masks(kinds, grid, 3, 9, range(6), truncate="raster")
    for name in ("kept", "hidden"):
        places = getattr(whole, f"{name}_M" if name == "kept" else f"{name}_P")
        lists = [(places[places // 256 == s] % 256).tolist() for s in range(12)]
        wanted = []
        for kind in range(2):
            own = lists[6 * kind : 6 * kind + 6]
            wanted += [each[: min(map(len, own))] for each in own]
        found = getattr(cut, f"{name}_M" if name == "kept" else f"{name}_P")
        assert [(found[found // 256 == s] % 256).tolist() for s in range(12)] == wanted
        assert getattr(cut, f"{name}_lengths") == tuple(map(len, wanted))
    assert len(cut.hidden_P) < len(whole.hidden_P), "which throws tokens away"


def test_a_picture_has_the_tokens_of_one_frame_and_kinds_of_its_own() -> None:
    picture_kind = block(blocks=10, spatial_scale=0.15)
    masks = sample_masks(
        PUBLISHED_MASKS,
        (4, 8, 8),
        0,
        0,
        range(3),
        pictures=[False, True, False],
        picture_configs=[picture_kind],
    )
    assert masks.clips == (0, 2, 0, 2, 1) and masks.kinds == (0, 0, 1, 1, 2)
    sums = [k + h for k, h in zip(masks.kept_lengths, masks.hidden_lengths, strict=True)]
    assert sums == [256, 256, 256, 256, 64]
    assert masks.shares == pytest.approx((1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3)), "each clip counts the same"
    own = torch.cat([masks.kept_M, masks.hidden_P])
    assert sorted((own[own // 256 == 4] % 256).tolist()) == list(range(64))
    source = torch.cat([masks.kept.source, masks.hidden.source])
    assert set((source[own // 256 == 4] // 256).tolist()) == {1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": 1, "spatial_scale": 0.0}, "nothing is hidden"),
        ({"blocks": 1, "spatial_scale": [0.5, 0.2]}, "spatial_scale"),
        ({"kind": "future", "past": [0.2, 1.5]}, "past"),
        ({"kind": "tubes", "hidden": 2}, "less than or equal to 1"),
        ({"kind": "spheres"}, "spheres"),
    ],
)
def test_impossible_masks_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(MaskConfig).validate_python(settings)
