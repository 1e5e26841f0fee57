"""Crops, flips and normalisation: one box for all frames, and the CPU's way equals the GPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.config import AugmentConfig
from pretrain.data.augment import MEAN, STD, View, draw_view, eval_view, normalise, normalise_into, resize
from pretrain.data.slots import Layout, Slots


def film(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise: what a codec leaves of a picture."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    big = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in rough]
    return np.clip(
        np.stack(big).astype(int) + rng.integers(-9, 10, (frames, height, width, 3)), 0, 255
    ).astype(np.uint8)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    low=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
def test_a_crop_lies_inside_the_frame(height: int, width: int, low: float, seed: int) -> None:
    view = draw_view(height, width, AugmentConfig(crop_scale=(low, 1.0)), np.random.default_rng(seed))
    assert view.height > 0
    assert view.width > 0
    assert 0 <= view.top <= height - view.height
    assert 0 <= view.left <= width - view.width


def test_crops_have_the_areas_and_aspects_asked_for() -> None:
    config = AugmentConfig(crop_scale=(0.3, 1.0), crop_ratio=(0.75, 1.35))
    views = [draw_view(256, 340, config, np.random.default_rng(k)) for k in range(2000)]
    areas = np.array([v.height * v.width / (256 * 340) for v in views])
    aspects = np.array([v.width / v.height for v in views])
    assert 0.29 < areas.min() < 0.32
    assert areas.max() > 0.9
    assert aspects.min() > 0.73
    assert aspects.max() < 1.38
    assert 0.46 < np.mean([v.is_mirrored for v in views]) < 0.54
    assert not any(
        draw_view(64, 64, AugmentConfig(hflip=False), np.random.default_rng(k)).is_mirrored for k in range(50)
    )


@pytest.mark.parametrize("size", [(48, 48), (224, 224), (90, 160)])
@pytest.mark.parametrize("box", [(0, 0, 128, 180), (10, 33, 57, 91), (100, 2, 17, 120)])
def test_resizing_equals_pillow_within_a_step(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    cut = View(*box).cut(film(2, 128, 180))
    ours = resize(torch.from_numpy(cut), *size).numpy().astype(int)
    for frame, found in zip(cut, ours, strict=True):
        theirs = Image.fromarray(np.ascontiguousarray(frame)).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.abs(found - np.asarray(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("box", [(0, 0, 128, 180), (10, 33, 57, 91), (5, 6, 40, 40)])
def test_whole_numbers_and_floats_agree_within_a_step(box: tuple[int, int, int, int]) -> None:
    """The GPU resizes floats; on the CPU they take the same way when they come as floats."""
    cut = torch.from_numpy(View(*box).cut(film(3, 128, 180)))
    worker, gpu = resize(cut, 64, 64).int(), resize(cut.float(), 64, 64).int()
    difference = (worker - gpu).float()
    assert difference.abs().max() <= 1
    assert abs(difference.mean()) < 0.1, "neither is brighter"


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_clip_normalised_by_a_worker_is_the_clip_that_a_gpu_makes_of_its_crop(is_mirrored: bool) -> None:
    frames, size = film(4, 72, 100), 32
    view = View(3, 5, 60, 44, is_mirrored)
    layouts = [Layout(clips=2, frames=4, size=size, numbers=8, on_gpu=on_gpu) for on_gpu in (False, True)]
    on_cpu, on_gpu = (Slots(layout, 3, is_shared=False) for layout in layouts)
    on_cpu.write_clip(1, 1, frames, view)
    crop = on_gpu.write_clip(1, 1, frames, view)
    assert (crop.height, crop.width) == ((60, 44) if 2 * size**2 >= 60 * 44 else (size, size))
    ready = normalise([on_gpu.crop(1, 1, crop)], size, [crop.is_mirrored])[0]
    difference = (on_cpu.floats(1)[1] - ready).abs().amax((1, 2, 3))
    assert (difference <= 1.001 / 255 / torch.tensor(STD)).all()

    cut = np.ascontiguousarray(view.cut(frames))
    plain = np.stack([Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR) for f in cut])
    plain = plain[:, :, ::-1] if is_mirrored else plain
    reference = (plain / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(on_cpu.floats(1)[1].numpy() - reference.transpose(3, 0, 1, 2)).max() < 1.1 / 255 / min(STD)


def test_a_batch_of_floats_is_its_clips_one_by_one_bit_for_bit() -> None:
    """As a GPU makes it: crops of several sizes, one of them of the right one, mirrored or not."""
    boxes = [(3, 5, 60, 44), (0, 0, 32, 32), (1, 2, 20, 70)]
    cut = [torch.from_numpy(View(*box).cut(film(4, 72, 100))).float() for box in boxes]
    mirrored = [True, False, True]
    apart = torch.empty(3, 3, 4, 32, 32)
    for clip, view, is_mirrored in zip(apart, cut, mirrored, strict=True):
        normalise_into(clip, resize(view, 32, 32), is_mirrored=is_mirrored)
    assert torch.equal(normalise(cut, 32, mirrored), apart)


def test_a_crop_too_large_for_its_place_is_resized_by_the_worker() -> None:
    slots = Slots(Layout(clips=1, frames=2, size=16, numbers=1, on_gpu=True), 1, is_shared=False)
    frames = film(2, 60, 80)
    crop = slots.write_clip(0, 0, frames, View(0, 0, 60, 80))
    assert (crop.height, crop.width) == (16, 16)
    assert torch.equal(slots.crop(0, 0, crop), resize(torch.from_numpy(frames), 16, 16))
    small = slots.write_clip(0, 0, frames, View(1, 2, 20, 24))
    assert np.array_equal(slots.crop(0, 0, small).numpy(), frames[:, 1:21, 2:26])


def test_all_frames_share_one_crop_and_flip() -> None:
    still = np.repeat(film(1, 60, 80), 5, axis=0)
    slots = Slots(Layout(clips=1, frames=5, size=16, numbers=1, on_gpu=False), 1, is_shared=False)
    slots.write_clip(0, 0, still, View(4, 9, 30, 33, is_mirrored=True))
    clip = slots.floats(0)[0]
    assert torch.equal(clip, clip[:, :1].expand_as(clip))


def test_the_eval_view_is_the_centre_at_the_short_side() -> None:
    frames = film(2, 60, 100)
    view = eval_view(frames, 30).numpy()
    theirs = np.asarray(Image.fromarray(frames[0]).resize((50, 30), Image.Resampling.BILINEAR))[:, 10:40]
    assert view.shape == (2, 30, 30, 3)
    assert np.abs(view[0].astype(int) - theirs.astype(int)).max() <= 1
