"""Masks: cover, never overlap, depend on coordinates alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import PUBLISHED_MASKS, MaskConfig
from pretrain.masks import box_size, hidden_union, mask_of, sample_masks
from pretrain.rng import stream

GRIDS = st.tuples(st.integers(1, 8), st.integers(2, 14), st.integers(2, 14))
KINDS = st.builds(
    MaskConfig,
    blocks=st.integers(1, 8),
    spatial_scale=st.floats(0.02, 1.0),
    temporal_scale=st.floats(0.1, 1.0),
)


@settings(max_examples=60, deadline=None)
@given(
    grid=GRIDS,
    kinds=st.lists(KINDS, min_size=1, max_size=3),
    clips=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_kept_and_hidden_name_every_place_once(
    grid: tuple[int, int, int], kinds: list[MaskConfig], clips: int, seed: int
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


def test_a_sequence_points_at_its_own_clip() -> None:
    masks = sample_masks(PUBLISHED_MASKS, (2, 4, 4), 0, 0, [0, 1, 2])
    sequence = masks.kept_M // masks.num_tokens
    source = masks.source(masks.kept_M)
    assert torch.equal(source // masks.num_tokens, sequence % 3)
    assert torch.equal(source % masks.num_tokens, masks.kept_M % masks.num_tokens)


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
    square = MaskConfig(blocks=1, spatial_scale=0.25, temporal_scale=0.5, ratio=(1.0, 1.0))
    assert box_size(square, (8, 16, 16), stream(0, "x")) == (4, 8, 8)
    tall = MaskConfig(blocks=1, spatial_scale=0.25, ratio=(4.0, 4.0))
    assert box_size(tall, (8, 16, 16), stream(0, "x")) == (8, 16, 4)


def test_published_masks_hide_most_of_a_clip() -> None:
    """V-JEPA reports that the long kind hides about 90 % of a clip, the short about three quarters."""
    grid = (8, 14, 14)
    shares = [
        np.mean([mask_of(kind, grid, stream(0, "share", n)).mean() for n in range(300)])
        for kind in PUBLISHED_MASKS
    ]
    assert 0.6 < shares[0] < 0.85
    assert 0.8 < shares[1] < 0.97


def test_every_frame_is_hidden_equally_often() -> None:
    half = MaskConfig(blocks=1, spatial_scale=0.5, temporal_scale=1.0)
    total = sum(mask_of(half, (8, 8, 8), stream(1, "frames", n)).sum((1, 2)) for n in range(50))
    assert total.min() == total.max()


def test_boxes_as_large_as_the_picture_leave_one_column() -> None:
    hidden = hidden_union((4, 3, 3), 2, (4, 3, 3), stream(0, "all"))
    assert (~hidden).sum() == 4
    assert (~hidden).any(axis=0).sum() == 1
