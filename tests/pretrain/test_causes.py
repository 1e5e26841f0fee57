"""What features vary by, beside answers that are known: of plain functions, and the world's own share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UsageError
from data_pipeline.worlds import World
from data_pipeline.worlds.write import simulated
from launch.train import run_train
from pretrain.causes import (
    Clips,
    Crossed,
    Floats,
    check_causes,
    crossed,
    frames_of,
    measure_causes,
    shares_of,
)
from pretrain.checkpoint import load_encoder
from pretrain.data.augment import MEAN, STD
from pretrain.weights.base import build_encoder
from pretrain.weights.run import run_weights
from tests.small_dataset import FPS, tiny_config, write_dataset

WORLD = World(size=32, fps=8.0, duration_s=1.5, leaves=0.5, band=(1, 4))


def test_frames_have_the_object_of_one_video_and_the_leaves_of_another() -> None:
    own, other = simulated(WORLD, 3, 7)[0], simulated(WORLD, 3, 8)[0]
    np.testing.assert_array_equal(frames_of(WORLD, 3, 7, 7, 12, 1), own)
    np.testing.assert_array_equal(frames_of(WORLD, 3, 7, 7, 4, 3), own[:12:3])
    mixed = frames_of(WORLD, 3, 7, 8, 12, 1)
    bare = WORLD.model_copy(update={"leaves": 0.0})
    at_one, at_other = ((simulated(bare, 3, video)[0] != 120).any(-1) for video in (7, 8))
    is_free = ~at_one & ~at_other
    assert 0.5 < is_free.mean() < 1
    far = np.abs(mixed[is_free].astype(int) - other[is_free])
    assert far.max() <= 1, "a rim too faint to show on grey may move a level"
    assert np.abs(mixed[at_one].astype(int) - other[at_one]).mean() > 20, "its own object is before them"
    np.testing.assert_array_equal(frames_of(bare, 3, 7, 8, 12, 1), simulated(bare, 3, 7)[0])


def of_two(a: np.ndarray, b: np.ndarray) -> Crossed:
    """As if clips were two numbers each: what the object is, and what the leaves are."""

    def clips(moving: np.ndarray, leaves: np.ndarray) -> Clips:
        return np.stack([moving, leaves], 1).reshape(-1, 1, 1, 1, 2).astype(np.float64)

    (a1, a2), (b1, b2) = a, b
    return Crossed(clips(a1, b1), clips(a2, b2), clips(a1, b2), clips(a2, b1))


def test_shares_are_those_of_a_sum_and_of_a_product() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (2, 20_000)), rng.normal(0, 2, (2, 20_000))

    def of(clips: Clips) -> list[Floats]:
        moving, leaves = clips.reshape(-1, 2).T.astype(float)
        return [moving[:, None], leaves[:, None], moving + leaves, moving * leaves, np.zeros(len(clips))]

    alone, leaves, total, product, nothing = shares_of(of_two(a, b), of)
    assert alone == {"leaves": 0.0, "object": pytest.approx(1.0)}
    assert leaves == {"leaves": pytest.approx(1.0), "object": 0.0}
    assert total == {"leaves": pytest.approx(0.8, abs=0.02), "object": pytest.approx(0.2, abs=0.02)}
    # of x y with mean 0 all of the variance goes when either is held
    assert product == {"leaves": pytest.approx(1.0, abs=0.05), "object": pytest.approx(1.0, abs=0.05)}
    assert all(math.isnan(each) for each in nothing.values())


@pytest.mark.parametrize("leaves", [0.2, 0.8])
def test_of_pixels_it_is_the_share_that_the_world_was_asked_for(leaves: float) -> None:
    world = WORLD.model_copy(update={"leaves": leaves})
    clips = crossed(world, 0, 200, 2, 4)
    (found,) = shares_of(clips, lambda each: [each.astype(np.float64)])
    assert found["leaves"] == pytest.approx(leaves, abs=0.03)
    assert found["object"] == pytest.approx(1 - leaves, abs=0.08), "and what the two make together"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("causes") / "data", {"train": [12]})
    return run_train(tiny_config(root, tmp_path_factory.mktemp("runs")), quiet=True).run


def test_of_a_run_they_are_those_of_the_encoder_that_its_probes_read(run: Path, tmp_path: Path) -> None:
    """Worked out anew from each encoder's tokens, one clip at a time."""
    world = WORLD.model_copy(update={"fps": FPS, "duration_s": 12 / FPS})
    found = measure_causes(run, world, pairs=6)
    clips = crossed(world, 0, 6, 8, 1)
    target = load_encoder(run)[0]
    context = build_encoder(run_weights(run, None, "context"))

    def pooled(encoder: torch.nn.Module) -> float:
        def of(clip: Clips) -> Floats:
            x = (torch.from_numpy(clip)[None].float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
            tokens = encoder(x.permute(0, 4, 1, 2, 3)).detach()
            each = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, keepdim=True, correction=0)
            mean: Floats = each[0].mean(0).double().numpy()
            return mean

        a, b, ab, ba = (np.stack([of(clip) for clip in each]) for each in clips)
        leaves = ((a - ab) ** 2).sum() + ((b - ba) ** 2).sum()
        return float(leaves / (((a - b) ** 2).sum() + ((ab - ba) ** 2).sum()))

    assert found["pooled features by leaves"] == pytest.approx(pooled(target), rel=1e-3)
    assert abs(pooled(target) - pooled(context)) > 1e-3, "so that the two can be told apart"
    names = {f"{before}{what} by {cause}" for cause in ("leaves", "object") for before, what in (
        ("", "pixels"), ("", "features"), ("", "pooled features"), ("untrained ", "features"),
        ("untrained ", "pooled features"),
    )}  # fmt: skip
    assert set(found) == names and all(0 < share < 2 for share in found.values())

    plain = tiny_config(
        Path(load_encoder(run)[1].data.sources[0].shards), tmp_path, probe={"encoder": "context"}
    )
    of_context = measure_causes(run_train(plain, quiet=True).run, world, pairs=6)
    assert of_context["pooled features by leaves"] == pytest.approx(pooled(context), rel=1e-3)


def test_a_world_that_does_not_fit_is_refused_with_what_would(run: Path) -> None:
    config = load_encoder(run)[1]
    for world, said in (
        (None, "has no leaves"),
        (WORLD.model_copy(update={"leaves": 0.0}), "has no leaves"),
        (
            WORLD.model_copy(update={"fps": FPS, "duration_s": 4 / FPS}),
            f"need a duration_s of {8 / FPS:.3g} s",
        ),
        (WORLD.model_copy(update={"fps": FPS * 1.5}), "whole number"),
    ):
        with pytest.raises(UsageError, match=said):
            check_causes("the data", world, config)
