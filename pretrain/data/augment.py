"""From stored frames to the size that the model sees: one crop and flip for all frames of a clip.

Clips stay uint8 until they are on the device. Shapes: B clips, T frames, H×W pixels, C channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import AugmentConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_TRIES = 10


def crop_box(
    height: int, width: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """top, left, height, width of a random crop by area and aspect; the largest centred one if none fits."""
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(frames_THWC: Tensor, height: int, width: int) -> Tensor:
    """uint8 frames at another size, bilinear with antialiasing; rounded, uint8."""
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    x = frames_THWC.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def train_view(frames_THWC: np.ndarray, size: int, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """A random resized crop, perhaps mirrored: uint8 (T, size, size, 3)."""
    top, left, h, w = crop_box(frames_THWC.shape[1], frames_THWC.shape[2], config, rng)
    cut = np.ascontiguousarray(frames_THWC[:, top : top + h, left : left + w])
    view = resize(torch.from_numpy(cut), size, size)
    is_mirrored = config.hflip and rng.random() < 0.5
    return view.flip(2) if is_mirrored else view


def eval_view(frames_THWC: np.ndarray, size: int) -> Tensor:
    """The short side resized to `size`, then the centre: uint8 (T, size, size, 3)."""
    height, width = frames_THWC.shape[1:3]
    scale = size / min(height, width)
    view = resize(
        torch.from_numpy(frames_THWC), max(size, round(height * scale)), max(size, round(width * scale))
    )
    top, left = (view.shape[1] - size) // 2, (view.shape[2] - size) // 2
    return view[:, top : top + size, left : left + size].contiguous()


def normalise(clips_BTHWC: Tensor) -> Tensor:
    """uint8 clips to float32 (B, C, T, H, W) with ImageNet's mean and deviation, on the clips' device."""
    scale = 1.0 / (255.0 * torch.tensor(STD, device=clips_BTHWC.device))
    shift = torch.tensor(MEAN, device=clips_BTHWC.device) / torch.tensor(STD, device=clips_BTHWC.device)
    return (clips_BTHWC.float() * scale - shift).permute(0, 4, 1, 2, 3).contiguous()
