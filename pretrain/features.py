"""Features for users: a path to weights, clips of bytes, tokens.

Shapes: B clips, T frames, H×W pixels, C channels, N tokens a clip, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import CheckpointError, DataError, UsageError
from pretrain.data.augment import eval_view, normalise
from pretrain.model.positions import Grid
from pretrain.weights.base import Description, Normalisation, Weights, build_encoder
from pretrain.weights.meta import Hints
from pretrain.weights.read import read_weights

Clips = Tensor | NDArray[np.uint8]


class Encoder:
    """Clips of uint8 to float32 tokens, without gradient.

    Positions are worked out for each size, so clips may be of others than it was trained on: frames a
    multiple of `tubelet` (or 1, a picture), height and width multiples of `patch`. Nothing is resized; that
    is the caller's, or `preprocess`'s.
    """

    def __init__(self, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.description: Description = weights.description
        if self.description.normalisation != Normalisation():
            raise CheckpointError(
                f"these weights want pixels normalised by {self.description.normalisation}; this release has "
                f"{Normalisation()} only"
            )
        self._module = build_encoder(weights)
        try:
            self.device = torch.device(device)
            self._module.to(self.device)
        except (RuntimeError, AssertionError) as error:  # the latter of a torch built without CUDA
            first, *_ = str(error).splitlines()
            raise UsageError(f"device {str(device)!r} cannot be used here: {first}") from error

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        hints: Hints | None = None,
        allow_partial: bool = False,
    ) -> Encoder:
        """The encoder of an exported or imported folder, a Hugging Face folder, a .pt, or a run's folder.

        Of a run: the target encoder of the newest checkpoint. hints: what a .pt does not tell.
        allow_partial: take weights with missing or unexpected keys, if the encoder's are all there.
        Raises: UsageError when there is no such thing; CheckpointError when it is damaged or not whole.
        """
        return cls(read_weights(Path(path), hints, allow_partial=allow_partial), device)

    @property
    def patch(self) -> int:
        return self._module.patch

    @property
    def tubelet(self) -> int:
        return self._module.tubelet

    @property
    def width(self) -> int:
        return self._module.width

    @property
    def grid(self) -> Grid:
        """Tokens in time, height and width of a clip of the size that it was trained on."""
        return self.description.grid

    def grid_of(self, clips_BTHWC: Clips) -> Grid:
        """Tokens in time, height and width of these clips: `tokens.unflatten(1, encoder.grid_of(clips))`."""
        _, frames, height, width, _ = self._checked(clips_BTHWC).shape
        return max(1, frames // self.tubelet), height // self.patch, width // self.patch

    @torch.no_grad()
    def __call__(self, clips_BTHWC_uint8: Clips) -> Tensor:
        """Features (B, N, D) of all tokens after the last block, float32, in raster order, time first.

        Raises: DataError when clips are not uint8, not RGB, or of a size that tokens do not tile.
        """
        clips = self._checked(clips_BTHWC_uint8)
        features: Tensor = self._module(normalise(clips.to(self.device)))
        return features

    def preprocess(self, video_THWC_uint8: Clips, size: int | None = None) -> Tensor:
        """One video as the model was evaluated: short side to `size`, centre crop; uint8 (T, size, size, C).

        size: None for the one it was trained on. Frames are taken as they are.
        Raises: DataError when the video is not uint8, not RGB, or has no pixels.
        """
        side = self.description.clips.size if size is None else size
        if side < 1 or side % self.patch:
            raise DataError(f"size {side}: need a multiple of the patch, {self.patch} pixels")
        video = _pixels(video_THWC_uint8, "frames", ("frames", "height", "width", 3))
        if 0 in video.shape:
            raise DataError(f"frames are of shape {tuple(video.shape)}: there is no pixel")
        return eval_view(video, side)

    def _checked(self, given: Clips) -> Tensor:
        clips = _pixels(given, "clips", ("clips", "frames", "height", "width", 3))
        batch, frames, height, width, _ = clips.shape
        if not batch:
            raise DataError("no clips: the batch is empty")
        if not frames or (frames > 1 and frames % self.tubelet):
            raise DataError(
                f"clips of {frames} frames: need a multiple of {self.tubelet}, or 1, which is a picture"
            )
        if not height or not width or height % self.patch or width % self.patch:
            raise DataError(
                f"frames of {height} × {width} pixels: need multiples of {self.patch}; `preprocess` makes "
                f"squares of {self.description.clips.size}"
            )
        return clips


def _pixels(given: Clips, what: str, form: tuple[object, ...]) -> Tensor:
    """Bytes of RGB as a tensor, without a copy where none is needed. Raises: DataError."""
    if not isinstance(given, Tensor | np.ndarray):
        raise DataError(f"{what} are a {type(given).__name__}: need a numpy array or a tensor of uint8")
    if str(given.dtype).removeprefix("torch.") != "uint8":
        raise DataError(f"{what} are {given.dtype}: need uint8, 0 to 255; they are normalised here")
    if given.ndim != len(form) or given.shape[-1] != 3:
        hint = "; of one clip, clip[None]" if given.ndim == len(form) - 1 == 4 else ""
        need = ", ".join(map(str, form))
        raise DataError(f"{what} are of shape {tuple(given.shape)}: need ({need}){hint}")
    # A view that runs backwards, as a flip makes, or may not be written to is copied: torch has none such.
    return (
        given if isinstance(given, Tensor) else torch.from_numpy(np.require(given, requirements=["C", "W"]))
    )
