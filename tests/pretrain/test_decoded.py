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
from pretrain.data.decoded import At, Decode, Decoded, Seconds
from pretrain.data.reader import ClipReader
from pretrain.data.stream import Batches
from tests import small_dataset as small_dataset_module
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


@pytest.mark.parametrize("encoding", ["mp4", "jpeg"])
def test_where_a_moment_lies_on_the_edge_of_a_frame_too(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 20 of 25 frames a second, a fifth of what is wanted lies on an edge, but for rounding."""
    monkeypatch.setattr(small_dataset_module, "FPS", 25.0)
    root = str(write_dataset(tmp_path / "set", {"train": [1]}, num_frames=30, encoding=encoding))
    plain, keeps = ClipReader(root, "train"), ClipReader(root, "train", keep_decoded=1 << 30)
    for begin_s in (0.0, 0.01, 0.03, 0.04):
        ours, theirs = (each.read(0, 22, 20.0, start=lambda _, s=begin_s: s) for each in (keeps, plain))  # type: ignore[misc]
        np.testing.assert_array_equal(ours.times_s, theirs.times_s)
        np.testing.assert_array_equal(ours.frames_THWC, theirs.frames_THWC)
    assert keeps._decoded.num_bytes > 0


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


def floor(at_s: Seconds, times_s: Seconds) -> np.ndarray:
    return np.minimum(np.floor(at_s).astype(np.int64), len(times_s) - 1)


def stand_in(
    num_frames: int, damaged: int | None = None, tried: list[int] | None = None
) -> tuple[Seconds, Decode]:
    pictures = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)

    def decode(at_s: np.ndarray) -> At:
        shown = floor(at_s, np.arange(num_frames, dtype=np.float64))
        if tried is not None:
            tried.append(len(at_s))
        if damaged is not None and damaged in shown:
            raise DataError("a damaged frame")
        return pictures[shown], shown.astype(np.float64), shown

    return np.arange(num_frames) + 0.25, decode


def test_more_than_the_first_promised_ends_at_the_limit_and_what_is_kept_stays() -> None:
    kept = Decoded(limit=60, num_clips=5)
    for key, num_frames in (("a", 4), ("b", 10), ("c", 9), ("d", 1), ("a", 4)):
        every_s, decode = stand_in(num_frames)
        frames, _, shown = kept.frames(key, 3 * num_frames, every_s, every_s[-1:], decode, floor)
        assert frames[0, 0, 0, 0] == shown[0] == num_frames - 1
    assert kept.num_bytes == 12 + 30 and not kept.is_open


def test_of_a_clip_with_a_damaged_frame_the_others_are_still_to_be_had() -> None:
    kept = Decoded(limit=1000, num_clips=2)
    tried: list[int] = []
    every_s, decode = stand_in(6, 4, tried)
    for _ in range(2):
        assert kept.frames("a", 18, every_s, every_s[:3], decode, floor)[2].tolist() == [0, 1, 2]
        with pytest.raises(DataError, match="a damaged frame"):
            kept.frames("a", 18, every_s, every_s, decode, floor)
    assert kept.num_bytes == 0 and kept.is_open
    assert tried == [6, 3, 6, 3, 6], "whole once"


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
