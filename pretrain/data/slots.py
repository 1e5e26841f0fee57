"""Memory that workers write batches into and the training process reads, used again and again.

A batch sent through a queue lies in fresh shared memory, whose pages cost more to make than the frames to
decode. Here each request names the slot that it is to be answered in.
Shapes: B clips a micro-batch, C channels, T frames, S side, N tokens a clip, K mask kinds.
"""

from __future__ import annotations

import math
import os
import shutil
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.data.augment import View, normalise_into, resize
from pretrain.masks import Masks

SHARED_MEMORY = "/dev/shm"
LARGEST_CROP = 2  # times the pixels that the model sees; a larger one is resized by the worker


@dataclass(frozen=True)
class Layout:
    """What a slot holds. numbers: of masks, at most. on_gpu: uint8 crops that a GPU resizes, else normalised
    floats.
    """

    clips: int
    frames: int
    size: int
    numbers: int
    on_gpu: bool

    @property
    def clip_bytes(self) -> int:
        pixels = 3 * self.frames * self.size**2
        return LARGEST_CROP * pixels if self.on_gpu else 4 * pixels


@dataclass(frozen=True)
class Crop:
    """How one clip lies in its slot: uint8 (T, height, width, C) still to be resized and mirrored."""

    height: int
    width: int
    is_mirrored: bool


class Slots:
    """`count` slots, shared with spawned workers or of this process alone.

    Raises: DataError when the machine's shared memory cannot hold them.
    """

    def __init__(self, layout: Layout, count: int, *, is_shared: bool) -> None:
        self.layout = layout
        new = _new_shared if is_shared else _new
        self._clips = new((count, layout.clips, layout.clip_bytes), dtype=torch.uint8)
        self._numbers = new((count, max(1, layout.numbers)), dtype=torch.int64)

    def pin(self) -> None:
        """Lock the slots in memory, for a GPU to copy from while the CPU goes on.

        Raises: DataError when the driver refuses it.
        """
        runtime = torch.cuda.cudart()
        for memory in (self._clips, self._numbers):
            told = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
            if told != 0:
                raise DataError(
                    f"the GPU's driver refuses to pin {memory.nbytes >> 20} MiB for the loader (CUDA error "
                    f"{told}): lower data.workers or data.prefetch, or raise the limit of locked memory"
                )
            # What is let go while the driver still counts it as locked cannot be locked again where it lay.
            weakref.finalize(self, _unlock, memory.data_ptr()).atexit = False

    def write_clip(self, slot: int, row: int, frames_THWC: np.ndarray, view: View) -> Crop:
        """Put a view of a clip's frames into its place, resized and normalised where no GPU does it."""
        layout = self.layout
        cut = torch.from_numpy(view.cut(frames_THWC))
        if not layout.on_gpu:
            small = resize(cut, layout.size, layout.size)
            normalise_into(self.floats(slot)[row], small, is_mirrored=view.is_mirrored)
            return Crop(layout.size, layout.size, False)
        if view.height * view.width > LARGEST_CROP * layout.size**2:
            cut = resize(cut, layout.size, layout.size)
        crop = Crop(cut.shape[1], cut.shape[2], view.is_mirrored)
        self.crop(slot, row, crop).copy_(cut)
        return crop

    def floats(self, slot: int) -> Tensor:
        """Normalised clips (B, C, T, S, S) of a slot."""
        layout = self.layout
        whole = self._clips[slot].view(torch.float32)
        return whole.view(layout.clips, 3, layout.frames, layout.size, layout.size)

    def crop(self, slot: int, row: int, crop: Crop) -> Tensor:
        """One clip's uint8 frames (T, height, width, C) in a slot."""
        shape = (self.layout.frames, crop.height, crop.width, 3)
        return self._clips[slot, row, : int(np.prod(shape))].view(shape)

    def write_masks(self, slot: int, masks: Masks) -> None:
        """Everything that a step will read of them."""
        numbers = masks.laid_out
        self._numbers[slot, : len(numbers)].copy_(numbers)

    def masks(self, slot: int, shape: Masks) -> Masks:
        """The masks written to a slot; shape: the same without their tensors."""
        return shape.over(self._numbers[slot])


def _unlock(place: int) -> None:
    torch.cuda.synchronize()  # a copy of what nobody waits for may be under way
    torch.cuda.cudart().cudaHostUnregister(place)


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        size = math.prod(shape) * dtype.itemsize
        raise DataError(
            f"a batch of clips needs {size / 2**20:,.0f} MiB, which this machine does not give: lower "
            f"train.micro_batch, data.frames or data.size"
        ) from error


def _new_shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in shared memory, which torch takes at once. Raises: DataError when there is not so much."""
    size = math.prod(shape) * dtype.itemsize
    remedy = "lower data.workers or data.prefetch, or give the container more (--shm-size)"
    if os.path.isdir(SHARED_MEMORY):  # asked first: what torch is refused leaves an empty file there
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < size:
            raise DataError(
                f"the loader's workers need {size / 2**20:,.1f} MiB of shared memory, and "
                f"{SHARED_MEMORY} has {free / 2**20:,.1f} MiB free: {remedy}"
            )
    try:
        storage = torch.UntypedStorage._new_shared(size, device="cpu")
    except RuntimeError as error:
        raise DataError(
            f"the loader's workers need {size >> 20} MiB of shared memory: {error}; {remedy}"
        ) from error
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
