"""Weights outside of a run: named tensors, with all that is needed to build the modules they belong to.

Tensors carry our names, `encoder.…` and `predictor.…`, and are float32. Which of them there must be follows
from the description, by building the modules without memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data_pipeline.errors import CheckpointError
from pretrain.config import ModelConfig, Section
from pretrain.data.augment import MEAN, STD
from pretrain.model.actions import ActionPredictor
from pretrain.model.positions import Grid
from pretrain.model.predictor import Predictor
from pretrain.model.vit import Encoder

Shapes = dict[str, tuple[int, ...]]
MAX_NAMED = 8
M = TypeVar("M", bound=nn.Module)


class Clips(Section):
    """What the encoder was trained on. fps: null where nobody says."""

    frames: int = Field(ge=1, le=1 << 16)
    size: int = Field(ge=1, le=1 << 14)
    fps: float | None = Field(None, gt=0)


class Normalisation(Section):
    """Subtracted from and divided out of pixels in 0 to 1, a number a channel."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


class PredictorForm(Section):
    """What of a predictor neither the model config nor the clips tell.

    masked: fills hidden tokens in; out_width and says_context as there. action: says what comes next from
    action_size and state_size numbers; has_mask_token where unknown moments may be asked for.
    """

    kind: Literal["masked", "action"] = "masked"
    out_width: int = Field(ge=1, le=1 << 20)
    says_context: bool = False
    action_size: int = Field(0, ge=0, le=1 << 16)
    state_size: int = Field(0, ge=0, le=1 << 16)
    has_mask_token: bool = False


class Description(Section):
    """All of weights but the numbers. provenance: where they are from, in words and plain values."""

    model: ModelConfig
    clips: Clips
    predictor: PredictorForm | None = None
    normalisation: Normalisation = Normalisation()
    masks: tuple[dict[str, Any], ...] = Field((), max_length=1000)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        encoder, clips = self.model.encoder, self.clips
        if clips.frames % encoder.tubelet or clips.size % encoder.patch:
            raise ValueError(
                f"clips of {clips.frames} frames of {clips.size} pixels a side: need multiples of the "
                f"tubelet {encoder.tubelet} and the patch {encoder.patch}"
            )
        return self

    @property
    def grid(self) -> Grid:
        """Tokens of a clip in time, height, width."""
        encoder, side = self.model.encoder, self.clips.size // self.model.encoder.patch
        return self.clips.frames // encoder.tubelet, side, side


@dataclass(frozen=True)
class Weights:
    """A description and its tensors by name; without a predictor, those of the encoder only."""

    description: Description
    tensors: dict[str, Tensor] = field(repr=False)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `encoder` or `predictor`, without that word."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def encoder_module(description: Description) -> Encoder:
    return Encoder(description.model.encoder, description.grid)


def predictor_module(description: Description) -> Predictor | ActionPredictor | None:
    """The predictor of a description with weights to come; None where there is none."""
    form, model, grid = description.predictor, description.model, description.grid
    if form is None:
        return None
    if form.kind == "masked":
        rows = model.predictor.mask_tokens or max(1, len(description.masks))
        return Predictor(
            model.predictor, model.encoder, grid, rows, form.out_width, says_context=form.says_context
        )
    # V-JEPA 2-AC encodes every frame alone; the one that has mask tokens goes by tubelets.
    moments = grid[0] if form.has_mask_token else description.clips.frames
    return ActionPredictor(
        model.predictor,
        model.encoder,
        (moments, *grid[1:]),
        form.action_size,
        form.state_size,
        has_mask_token=form.has_mask_token,
    )


def expected_shapes(description: Description) -> Shapes:
    """The shape of every tensor that weights of this description hold."""
    with torch.device("meta"):
        modules = {"encoder": encoder_module(description), "predictor": predictor_module(description)}
    return {
        f"{part}.{name}": tuple(parameter.shape)
        for part, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
    }


def build_encoder(weights: Weights) -> Encoder:
    """The encoder with these weights, which it shares; on CPU, eval mode, without gradient.

    Raises: CheckpointError naming what is missing.
    """
    with torch.device("meta"):
        module = encoder_module(weights.description)
    return _filled(module, weights.part("encoder"), "encoder")


def build_predictor(weights: Weights) -> Predictor | ActionPredictor:
    """The predictor, as `build_encoder`."""
    with torch.device("meta"):
        module = predictor_module(weights.description)
    if module is None:
        raise CheckpointError("these weights hold no predictor: they were written without one")
    return _filled(module, weights.part("predictor"), "predictor")


def _filled(module: M, tensors: dict[str, Tensor], part: str) -> M:
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    lacking = [name for name, shape in wanted.items() if name not in tensors or tensors[name].shape != shape]
    if lacking:
        named = ", ".join(f"{part}.{name}" for name in lacking[:MAX_NAMED])
        rest = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
        raise CheckpointError(f"these weights lack {named}{rest}: they were written with --allow-partial")
    module.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    return module.eval().requires_grad_(False)
