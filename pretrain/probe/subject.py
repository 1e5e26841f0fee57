"""What is probed: an encoder out of a run or of weights, beside one of the same form that learned nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UsageError
from pretrain.checkpoint import load_encoder, untrained_encoder
from pretrain.config import DataConfig, RunConfig
from pretrain.data.augment import MEAN, STD
from pretrain.model.vit import Encoder
from pretrain.weights.base import Normalisation, build_encoder
from pretrain.weights.read import read_weights

TRAINED, UNTRAINED = "trained", "untrained"


@dataclass(frozen=True)
class Subject:
    """config: how its clips are read; of weights, what they say, and defaults. step: of a run's checkpoint.

    facts: where the weights are from, and the hash of their values.
    """

    encoders: dict[str, Encoder]
    config: RunConfig
    step: int | None
    facts: dict[str, Any]

    def reading(self, frames: int | None, fps: float | None, size: int | None) -> Subject:
        """The same with clips of other frames, rate or size, where one is given. Raises: UsageError."""
        form, given = self.config.model.encoder, {"frames": frames, "fps": fps, "size": size}
        for name, value, of in (("frames", frames, form.tubelet), ("size", size, form.patch)):
            if value is not None and value % of:
                raise UsageError(f"--{name} is {value}: need a multiple of {of}, which a token spans")
        changed = {name: value for name, value in given.items() if value is not None}
        data = self.config.data.model_copy(update=changed)
        return replace(self, config=self.config.model_copy(update={"data": data}))

    def to(self, device: torch.device) -> Subject:
        for encoder in self.encoders.values():
            encoder.to(device)
        return self


def of_run(run: Path, step: int | None) -> Subject:
    """A run's checkpoint: the target encoder, or the context encoder where that is what learns.

    Raises: CheckpointError.
    """
    trained, config, at_step = load_encoder(run, step)
    which = "context encoder" if config.learns_in_context else "target encoder (moving average)"
    facts = {"name": config.name, "step": at_step, "encoder": which, "fingerprint": fingerprint(trained)}
    return Subject({TRAINED: trained, UNTRAINED: untrained_encoder(config)}, config, at_step, facts)


def of_weights(path: Path, data: str) -> Subject:
    """Weights that were exported, imported, of Hugging Face or a .pt, probed on a data set.

    Clips are as the weights say; where they do not tell frames a second, 4, the default of a run.
    Raises: UsageError, CheckpointError.
    """
    try:
        weights = read_weights(path)
    except UsageError as error:
        if not path.is_file():
            raise
        remedy = f"`foreframe import {path} OUT` takes what it does not tell: probe OUT then"
        raise UsageError(f"{error}; {remedy}") from error
    said = weights.description
    if said.normalisation != Normalisation():
        raise UsageError(f"{path} wants pixels normalised by {said.normalisation}: need {Normalisation()}")
    clips: dict[str, Any] = {"shards": data, "frames": said.clips.frames, "size": said.clips.size}
    if said.clips.fps is not None:
        clips["fps"] = said.clips.fps
    config = RunConfig(name="probe", data=DataConfig(**clips), model=said.model)
    trained = build_encoder(weights)
    facts = {**said.provenance, "name": path.name, "fingerprint": fingerprint(trained)}
    return Subject({TRAINED: trained, UNTRAINED: untrained_encoder(config)}, config, None, facts)


def fingerprint(encoder: torch.nn.Module) -> str:
    """A hash of the names and float32 values of the weights, the same wherever they lie."""
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def preprocessing(config: RunConfig, segments: int, views: int) -> dict[str, Any]:
    """What is done to a clip before the encoder sees it, for whoever uses a head that was trained here."""
    data, encoder = config.data, config.model.encoder
    return {
        "frames": data.frames,
        "fps": data.fps,
        "size": data.size,
        "short_clips": data.short_clips,
        "resize": "short side to size, bilinear with antialiasing, rounded to bytes",
        "crop": "centre" if views == 1 else f"{views} squares spread over the long side",
        "mean": list(MEAN),
        "std": list(STD),
        "segments": segments,
        "views": views,
        "patch": encoder.patch,
        "tubelet": encoder.tubelet,
    }


def device_of(name: str) -> torch.device:
    """`auto` is CUDA where there is some. Raises: UsageError when the device cannot be used here."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch built without CUDA
        raise UsageError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
