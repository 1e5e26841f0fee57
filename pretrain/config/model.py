"""Encoder and predictor."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import PositiveInt, Section

# width, depth, heads; giant has 22 heads as V-JEPA 2 (arXiv:2506.09985), gigantic as ViT-G/14.
PRESETS: dict[str, tuple[int, int, int, float]] = {
    "vit_tiny": (192, 12, 3, 4.0),
    "vit_small": (384, 12, 6, 4.0),
    "vit_base": (768, 12, 12, 4.0),
    "vit_large": (1024, 24, 16, 4.0),
    "vit_huge": (1280, 32, 16, 4.0),
    "vit_giant": (1408, 40, 22, 48 / 11),
    "vit_gigantic": (1664, 48, 26, 64 / 13),
}
Preset = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant", "vit_gigantic"]
Rope = Literal["vjepa2", "interleaved", "none"]
# Far above any that was trained; a number beyond is a slip, or a damaged file, and would fill memory.
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Depth = Annotated[int, Field(ge=1, le=1000)]


class EncoderConfig(Section):
    """A pre-norm ViT over tubelets; width, depth and heads come from the preset unless given."""

    preset: Preset = Field("vit_small", description="width, depth, heads and MLP ratio by name")
    patch: int = Field(16, ge=1, le=512, description="side of a patch in pixels")
    tubelet: int = Field(2, ge=1, le=512, description="frames a token spans")
    rope: Rope = Field(
        "vjepa2",
        description="3D rotary positions as released for V-JEPA 2, or interleaved as for 2.1; none: fixed "
        "sines and cosines are added, as in V-JEPA 1",
    )
    rope_span: int | None = Field(
        None,
        ge=2,
        le=1 << 16,
        description="rows and columns are spread over as many positions whatever the picture's size (16 for "
        "V-JEPA 2.1); null: one for each token",
    )
    levels: tuple[Depth, ...] = Field(
        (),
        description="blocks after which features are taken, each with a norm of its own, the last one too: "
        "deep supervision, as V-JEPA 2.1; empty: after the last block only",
    )
    pictures: Literal["repeat", "own"] = Field(
        "repeat",
        description="a picture is a clip that stands still; or has one frame of tokens with an embedding of "
        "its own, and both kinds are told apart, as V-JEPA 2.1",
    )
    width: Width | None = Field(None, description="overrides the preset's width")
    depth: Depth | None = Field(None, description="overrides the preset's number of blocks")
    heads: PositiveInt | None = Field(None, description="overrides the preset's number of heads")

    @property
    def shape(self) -> tuple[int, int, int, float]:
        """width, depth, heads, MLP ratio after the overrides."""
        width, depth, heads, ratio = PRESETS[self.preset]
        return self.width or width, self.depth or depth, self.heads or heads, ratio

    @property
    def num_levels(self) -> int:
        return max(1, len(self.levels))

    @model_validator(mode="after")
    def _check(self) -> Self:
        width, depth, heads, _ = self.shape
        _head_width("encoder", width, heads)
        levels = self.levels
        if levels and (list(levels) != sorted(set(levels)) or levels[-1] != depth):
            raise ValueError(f"levels is {list(levels)}: need rising numbers that end with the depth {depth}")
        return self


def _head_width(part: str, width: int, heads: int) -> None:
    if width % heads or (width // heads) % 2 or width // heads < 6:
        raise ValueError(
            f"{part} width {width} with {heads} heads: need an even width a head of at least 6, "
            f"so that 3D rotary positions fit"
        )


class PredictorConfig(Section):
    """A narrow ViT from context tokens and mask tokens to predicted features."""

    depth: Depth = Field(12, description="number of blocks")
    width: Width = Field(384, description="width of the predictor's tokens")
    heads: PositiveInt = Field(12, description="attention heads")
    mask_tokens: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="learned mask tokens, taken by mask kinds in turn; null: one for each kind",
    )
    told: Literal["tokens", "added"] = Field(
        "tokens",
        description="how an action or a state reaches the patches of its moment; tokens: as a token beside "
        "them, as published (V-JEPA 2-AC); added: to each of them, which few steps learn sooner",
    )
    says: Literal["features", "change"] = Field(
        "features",
        description="what is said of the next moment; features: as published; change: what is added to the "
        "features of the moment before, so that training begins with a copy; for action_latent alone",
    )
    action_scale: float = Field(
        1.0, gt=0, le=1e6, description="actions are divided by it: about their standard deviation"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _head_width("predictor", self.width, self.heads)
        return self


class ModelConfig(Section):
    encoder: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    init_std: float = Field(
        0.02,
        gt=0,
        le=10,
        description="of the truncated normal that weights start from; as published for wide models",
    )
    attention: Literal[
        "auto",
        "xformers",
        "xformers_flash",
        "xformers_efficient",
        "varlen",
        "sdpa",
        "sdpa_flash",
        "sdpa_cudnn",
        "sdpa_efficient",
        "segments",
    ] = Field(
        "auto",
        description="auto: on CUDA the fastest on the run's own rows, timed at its start; on CPU segments, "
        "which is SDPA sequence by sequence where they are long and of different lengths; by name for all "
        "stacks: a kernel of SDPA's is taken where sequences are equally long, else SDPA",
    )
    products: Literal["auto", "torch", "onednn"] = Field(
        "auto",
        description="what multiplies float32 matrices on CPU: torch's own choice, which is MKL, or oneDNN; "
        "auto takes oneDNN where the processor has AVX-512 and is not Intel's",
    )
