"""Clips that stay decoded are what decoding gives, and are kept where all of a data set fit, else none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from pretrain.config import plan
from pretrain.data import reader as reading
from pretrain.data.decoded import At, Decoded
from pretrain.data.reader import ClipReader
from pretrain.data.stream import Batches
from tests.small_dataset import SIZE, tiny_config, write_dataset

FRAME = SIZE * SIZE * 3
CLIP = 20 * FRAME


@pytest.fixture(scope="module", params=["mp4", "jpeg"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("decoded") / request.param
    return str(write_dataset(folder, {"train": [3, 3]}, num_frames=20, encoding=request.param))


@pytest.mark.parametrize(("frames", "fps"), [(8, 8.0), (4, 3.0), (6, 16.0), (19, 7.9)])
def test_bit_for_bit_what_decoding_gives_wherever_a_clip_begins(root: str, frames: int, fps: float) -> None:
    plain, keeps = ClipReader(root, "train"), ClipReader(root, "train", keep_decoded=1 << 30)
    for seed in range(4):
        for number in range(6):
            share = np.random.default_rng([seed, number]).uniform()
            ours, theirs = (
                each.read(number, frames, fps, start=lambda spare_s, share=share: share * spare_s)  # type: ignore[misc]
                for each in (keeps, plain)
            )
            np.testing.assert_array_equal(ours.frames_THWC, theirs.frames_THWC)
            np.testing.assert_array_equal(ours.times_s, theirs.times_s)
            for one, two in ((ours.state, theirs.state), (ours.actions, theirs.actions)):
                assert one is not None and two is not None
                np.testing.assert_array_equal(one, two)
    assert keeps._decoded.num_bytes == 6 * CLIP and plain._decoded.num_bytes == 0
    held = [each.read(2, 30, 8.0, holds=True).frames_THWC for each in (keeps, plain)]
    np.testing.assert_array_equal(*held)


def test_a_clip_is_decoded_once(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("decode_clip", "decode_jpegs"):
        own = getattr(reading, name)

        def counted(*given: object, own: object = own) -> object:
            calls.append("decoded")
            return own(*given)  # type: ignore[operator]

        monkeypatch.setattr(reading, name, counted)
    keeps = ClipReader(root, "train", keep_decoded=6 * CLIP)
    for _ in range(3):
        for number in range(6):
            keeps.read(number, 4, 8.0)
    assert len(calls) == 6
    there = pickle.loads(pickle.dumps(keeps))
    assert there._decoded.num_bytes == 0 and there._decoded.is_open
    there.read(0, 4, 8.0)
    assert len(calls) == 7 and there._decoded.num_bytes == CLIP


@pytest.mark.parametrize("limit", [0, 1, 6 * CLIP - 1])
def test_nothing_is_kept_of_a_data_set_that_does_not_fit(root: str, limit: int) -> None:
    keeps, plain = ClipReader(root, "train", keep_decoded=limit), ClipReader(root, "train")
    for number in (0, 1, 0, 5):
        ours, theirs = (each.read(number, 4, 8.0).frames_THWC for each in (keeps, plain))
        np.testing.assert_array_equal(ours, theirs)
    assert keeps._decoded.num_bytes == 0 and not keeps._decoded.is_open


def stand_in(num_frames: int, damaged: int | None = None) -> tuple[np.ndarray, object]:
    pictures = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)

    def decode(at_s: np.ndarray) -> At:
        shown = np.minimum(np.floor(at_s).astype(np.int64), num_frames - 1)
        if damaged is not None and damaged in shown:
            raise DataError("a damaged frame")
        return pictures[shown], shown.astype(np.float64), shown

    return np.arange(num_frames) + 0.25, decode


def test_more_than_the_first_promised_ends_at_the_limit_and_what_is_kept_stays() -> None:
    kept = Decoded(limit=60, num_clips=5)
    for key, num_frames in (("a", 4), ("b", 10), ("c", 9), ("d", 1), ("a", 4)):
        every_s, decode = stand_in(num_frames)
        frames, _, shown = kept.frames(key, every_s, every_s[-1:], decode)  # type: ignore[arg-type]
        assert frames[0, 0, 0, 0] == shown[0] == num_frames - 1
    assert kept.num_bytes == 12 + 30 and not kept.is_open


def test_of_a_clip_with_a_damaged_frame_the_others_are_still_to_be_had() -> None:
    kept = Decoded(limit=1000, num_clips=2)
    every_s, decode = stand_in(6, damaged=4)
    for _ in range(2):
        assert kept.frames("a", every_s, every_s[:3], decode)[2].tolist() == [0, 1, 2]  # type: ignore[arg-type]
        with pytest.raises(DataError, match="a damaged frame"):
            kept.frames("a", every_s, every_s, decode)  # type: ignore[arg-type]
    assert kept.num_bytes == 0 and kept.is_open


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_over_epochs(small_dataset: Path, tmp_path: Path, workers: int) -> None:
    def taken(keep: int) -> list[tuple[object, ...]]:
        config = tiny_config(small_dataset, tmp_path, data={"workers": workers, "keep_decoded": keep})
        batches = Batches(plan(config, 1), 0, torch.device("cpu"))
        try:
            return [(b.keys, b.clips.clone()) for _ in range(10) for b in batches.take(2)]
        finally:
            batches.close()

    for (keys, clips), (others, theirs) in zip(taken(1 << 30), taken(0), strict=True):
        assert keys == others and torch.equal(clips, theirs)  # type: ignore[arg-type]
