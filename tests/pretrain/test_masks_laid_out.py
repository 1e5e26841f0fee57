"""What a step reads of its masks, brought along in one row, against the same worked out token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config import PUBLISHED_MASKS
from pretrain.config.masks import BlockMaskConfig
from pretrain.masks import Masks, Stills, most_numbers, sample_masks
from pretrain.model.attention import Packing

GRID, TOKENS = (4, 8, 8), 256
STILL = BlockMaskConfig(blocks=10, spatial_scale=0.15)
CASES: dict[str, dict[str, Any]] = {
    "clips": {},
    "truncated": {"truncate": "raster"},
    "pictures among clips": {"pictures": [False, True, False], "picture_configs": [STILL]},
    "pictures alone": {"pictures": [True, True, True], "picture_configs": [STILL]},
}


def drawn(name: str) -> Masks:
    return sample_masks(PUBLISHED_MASKS, GRID, 3, 9, range(3), **CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_a_row_that_was_brought_elsewhere_says_what_the_lists_say(name: str) -> None:
    masks = drawn(name)
    behind = torch.full((5,), -1)  # a slot is longer than what is in it
    found = masks.shape.over(torch.cat([masks.laid_out, behind]))
    for tokens, lengths in ((found.kept, masks.kept_lengths), (found.hidden, masks.hidden_lengths)):
        sequences = [s for s, length in enumerate(lengths) for _ in range(length)]
        assert tokens.sequence.tolist() == sequences
        assert tokens.lengths_S.tolist() == list(lengths)
        token = tokens.token.tolist()
        assert tokens.places.tolist() == [s * TOKENS + t for s, t in zip(sequences, token, strict=True)]
        source = [masks.clips[s] * TOKENS + t for s, t in zip(sequences, token, strict=True)]
        assert tokens.source.tolist() == source
    assert torch.equal(found.kept_M, masks.kept_M) and torch.equal(found.hidden_P, masks.hidden_P)
    places = [*masks.kept_M.tolist(), *masks.hidden_P.tolist()]
    rank = {place: number for number, place in enumerate(sorted(places))}
    assert found.rank_T.tolist() == [rank[place] for place in places]
    assert found.kinds_S.tolist() == list(masks.kinds)
    assert torch.equal(found.shares_S, torch.tensor(masks.shares))
    both = zip(masks.kept_lengths, masks.hidden_lengths, strict=True)
    assert found.lengths_S.tolist() == [kept + hidden for kept, hidden in both]
    assert found.is_still_S.tolist() == [int(masks.pictures[clip]) for clip in masks.clips]
    assert found.stills.flags == masks.pictures
    for own, wanted in zip(found.stills[1:], Stills.of(masks.pictures, torch.device("cpu"))[1:], strict=True):
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("name", CASES)
def test_a_slot_has_room_for_any_masks(name: str) -> None:
    masks = drawn(name)
    assert len(masks.laid_out) <= most_numbers(3, TOKENS, 2)


def test_masks_of_nothing_fit_too() -> None:
    """As of an objective that hides nothing."""
    masks = sample_masks((), GRID, 0, 0, range(5))
    assert len(masks.laid_out) <= most_numbers(5, TOKENS, 0)
    assert masks.over(masks.laid_out).stills.is_still_B.tolist() == [0] * 5


@pytest.mark.parametrize("name", CASES)
def test_the_sequences_of_a_kind_are_a_span(name: str) -> None:
    masks = drawn(name)
    spans = [list(range(masks.num_sequences))[own] for own in masks.kind_spans]
    wanted = [[s for s, kind in enumerate(masks.kinds) if kind == k] for k in range(masks.num_kinds)]
    assert spans == wanted


@pytest.mark.parametrize("lengths", [(5, 3, 8), (4, 4), (1,), (2, 7, 7, 1)])
def test_sequences_laid_out_leave_room_behind_the_shorter(lengths: tuple[int, ...]) -> None:
    """With the lengths as they come along, and as a list."""
    for packing in (Packing(lengths), Packing(lengths, lengths_S=torch.tensor(lengths))):
        longest = max(lengths)
        slots = [row * longest + n for row, length in enumerate(lengths) for n in range(length)]
        assert packing.slots_M.tolist() == slots
        filled = [[n < length for n in range(longest)] for length in lengths]
        assert packing.filled_SL.tolist() == filled
