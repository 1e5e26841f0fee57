"""From stored frames to clips of the size that the model sees: one crop and flip for all frames of a clip.

A view is drawn first, by numbers alone; then the same view is taken by a loader worker or on a GPU. The
worker's arithmetic is of whole numbers, the GPU's of floats: they agree within one step of 255.
Shapes: B clips, T frames, H×W pixels, C channels, S the side that the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config import AugmentConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_TRIES = 10


@dataclass(frozen=True)
class View:
    """A box of the frames, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    is_mirrored: bool = False

    def cut(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The box of all frames (T, h, w, C), without a copy; not yet mirrored."""
        return frames_THWC[:, self.top : self.top + self.height, self.left : self.left + self.width]


def draw_view(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> View:
    """A random crop by area and aspect, the largest centred one if none fits; mirrored or not.

    Source: Inception's random crop, arXiv:1409.4842, sec. 6.
    """
    box = None
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            box = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
            break
    if box is None:
        ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        box = (height - h) // 2, (width - w) // 2, h, w
    return View(*box, is_mirrored=config.hflip and bool(rng.random() < 0.5))


def resize(frames_THWC: Tensor, height: int, width: int) -> Tensor:
    """Frames of uint8 values at another size, bilinear with antialiasing, rounded: uint8.

    uint8 on the CPU is worked on in whole numbers, which takes a twenty-fifth of the time of floats.
    """
    x = frames_THWC if frames_THWC.device.type == "cpu" else frames_THWC.float()
    x = _resized(x, height, width)
    x = x if x.dtype == torch.uint8 else x.round().clamp_(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1)


def _resized(frames_THWC: Tensor, height: int, width: int) -> Tensor:
    """Frames at another size (T, C, height, width), in their own type."""
    x = frames_THWC.permute(0, 3, 1, 2)  # channels lie innermost in memory, as torch's fast path wants them
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def normalise_into(clip_CTHW: Tensor, frames_THWC: Tensor, *, is_mirrored: bool = False) -> None:
    """Write uint8 frames as float32 with ImageNet's mean and deviation into one clip of a batch."""
    planes = frames_THWC.permute(3, 0, 1, 2)
    planes = planes.flip(-1) if is_mirrored else planes.contiguous()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        torch.add(torch.tensor(-mean / std), planes[channel], alpha=1 / (255 * std), out=clip_CTHW[channel])


def normalise(
    views_THWC: Tensor | Sequence[Tensor], size: int | None = None, mirrored: Sequence[bool] | None = None
) -> Tensor:
    """uint8 clips to float32 (B, C, T, S, S) with ImageNet's mean and deviation, on the clips' device.

    views_THWC: (B, T, H, W, C), or a sequence of (T, h, w, C) of different sizes, brought to `size`.
    """
    frames, height, width, channels = views_THWC[0].shape
    height, width = (size, size) if size is not None else (height, width)
    shape = (len(views_THWC), channels, frames, height, width)
    out = torch.empty(shape, dtype=torch.float32, device=views_THWC[0].device)
    flips = [False] * len(out) if mirrored is None else mirrored
    if out.device.type == "cpu" and views_THWC[0].dtype == torch.uint8:
        for clip, view, is_mirrored in zip(out, views_THWC, flips, strict=True):
            normalise_into(clip, resize(view, height, width), is_mirrored=is_mirrored)
        return out
    # The same in few launches: clips one by one only while they differ in size.
    for clip, view, is_mirrored in zip(out, views_THWC, flips, strict=True):
        small_TCHW = _resized(view.float(), height, width)
        clip.copy_((small_TCHW.flip(-1) if is_mirrored else small_TCHW).transpose(0, 1))
    out.round_().clamp_(0, 255)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        plane = out[:, channel]
        torch.add(torch.tensor(-mean / std), plane, alpha=1 / (255 * std), out=plane)
    return out


def eval_view(frames_THWC: NDArray[np.uint8] | Tensor, size: int) -> Tensor:
    """The short side resized to `size`, then the centre: uint8 (T, size, size, 3)."""
    height, width = frames_THWC.shape[1:3]
    scale = size / min(height, width)
    view = resize(
        torch.as_tensor(frames_THWC), max(size, round(height * scale)), max(size, round(width * scale))
    )
    top, left = (view.shape[1] - size) // 2, (view.shape[2] - size) // 2
    return view[:, top : top + size, left : left + size].contiguous()
