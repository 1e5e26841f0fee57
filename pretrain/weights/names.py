"""How our tensors are called elsewhere: maps between our names and Meta's and Hugging Face's, both ways.

A `Part` is one tensor of ours and the tensors of theirs that it is made of; `joined` and `parted` go the two
ways without loss. Nothing here reads a file.
Source: the released code of V-JEPA (arXiv:2404.08471), V-JEPA 2 (arXiv:2506.09985), V-JEPA 2.1
(arXiv:2603.14482); VJEPA2Model of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.config import EncoderConfig, ModelConfig
from pretrain.weights.base import PredictorForm

Join = Literal["same", "rows", "vectors", "flat"]
BOTH = ("weight", "bias")

META_BLOCK: dict[str, tuple[str, ...]] = {
    "norm1": ("norm1",),
    "qkv": ("attn.qkv",),
    "proj": ("attn.proj",),
    "norm2": ("norm2",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
HUGGINGFACE_BLOCK: dict[str, tuple[str, ...]] = {
    "norm1": ("norm1",),
    "qkv": ("attention.query", "attention.key", "attention.value"),
    "proj": ("attention.proj",),
    "norm2": ("norm2",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}


@dataclass(frozen=True)
class Part:
    """A tensor of ours and what makes it up elsewhere, in order.

    join: the same tensor; several below each other (`rows`); several (1, 1, E) as the rows of a table
    (`vectors`); one (K, 1, 1, E) as the table (K, E) (`flat`).
    """

    ours: str
    theirs: tuple[str, ...]
    join: Join = "same"

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Ours, made of theirs. Raises: RuntimeError when their shapes do not go together."""
        if self.join == "rows":
            return torch.cat(list(tensors))
        if self.join == "vectors":
            return torch.stack([tensor.flatten() for tensor in tensors])
        return tensors[0].flatten(0, -2) if self.join == "flat" else tensors[0]

    def parted(self, tensor: Tensor) -> dict[str, Tensor]:
        """Theirs by name, made of ours."""
        if self.join == "rows":
            return dict(zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True))
        if self.join == "vectors":
            return dict(zip(self.theirs, tensor[:, None, None].unbind(), strict=True))
        return {self.theirs[0]: tensor[:, None, None] if self.join == "flat" else tensor}


def own_parts(names: Sequence[str]) -> list[Part]:
    """Our own names, as our own folder has them."""
    return [Part(name, (name,)) for name in names]


def meta_parts(
    model: ModelConfig,
    form: PredictorForm | None,
    encoder_key: str = "encoder",
    num_norms: int = 0,
    first_mask_token_only: bool = False,
) -> list[Part]:
    """Meta's names, below the keys of the .pt: `encoder_key` and `predictor`.

    num_norms: V-JEPA 2.1 has that many last norms, of which the last is ours where we take one level.
    """
    encoder, key = model.encoder, encoder_key
    parts = list(_layer("encoder.embed", f"{key}.patch_embed.proj"))
    if encoder.pictures == "own":
        parts += _layer("encoder.embed_pictures", f"{key}.patch_embed_img.proj")
        parts.append(_modalities("encoder", key))
    parts += _blocks("encoder.blocks", f"{key}.blocks", encoder.shape[1], META_BLOCK)
    levels = len(encoder.levels)
    for level in range(levels - 1):
        parts += _layer(f"encoder.level_norms.{level}", f"{key}.norms_block.{level}")
    parts += _layer("encoder.norm", f"{key}.norms_block.{num_norms - 1}" if num_norms else f"{key}.norm")
    if form is None:
        return parts
    parts += _meta_predictor(model, form, first_mask_token_only)
    return parts


def _meta_predictor(model: ModelConfig, form: PredictorForm, first_only: bool) -> Iterator[Part]:
    for name in _embeds(model.encoder, form):
        yield from _layer(f"predictor.embed{name}", f"predictor.predictor_embed{name}")
    if form.kind == "masked":
        rows = 1 if first_only else model.predictor.mask_tokens or 1
        tokens = tuple(f"predictor.mask_tokens.{row}" for row in range(rows))
        yield Part("predictor.mask_tokens", tokens, "vectors")
        if model.encoder.pictures == "own":
            yield _modalities("predictor", "predictor")
    else:
        for what, size in (("action", form.action_size), ("state", form.state_size)):
            if size:
                yield from _layer(f"predictor.embed_{what}", f"predictor.{what}_encoder")
    yield from _blocks("predictor.blocks", "predictor.predictor_blocks", model.predictor.depth, META_BLOCK)
    yield from _layer("predictor.norm", "predictor.predictor_norm")
    yield from _layer("predictor.out", "predictor.predictor_proj")
    if form.says_context:
        yield from _layer("predictor.out_context", "predictor.predictor_proj_context")


def huggingface_parts(model: ModelConfig, form: PredictorForm | None) -> list[Part]:
    """The names of transformers' VJEPA2Model."""
    parts = list(_layer("encoder.embed", "encoder.embeddings.patch_embeddings.proj"))
    parts += _blocks("encoder.blocks", "encoder.layer", model.encoder.shape[1], HUGGINGFACE_BLOCK)
    parts += _layer("encoder.norm", "encoder.layernorm")
    if form is None:
        return parts
    parts += _layer("predictor.embed", "predictor.embeddings.predictor_embeddings")
    parts.append(Part("predictor.mask_tokens", ("predictor.embeddings.mask_tokens",), "flat"))
    parts += _blocks("predictor.blocks", "predictor.layer", model.predictor.depth, HUGGINGFACE_BLOCK)
    parts += _layer("predictor.norm", "predictor.layernorm")
    parts += _layer("predictor.out", "predictor.proj")
    return parts


def _layer(ours: str, *theirs: str) -> Iterator[Part]:
    for kind in BOTH:
        yield Part(
            f"{ours}.{kind}",
            tuple(f"{name}.{kind}" for name in theirs),
            "rows" if len(theirs) > 1 else "same",
        )


def _blocks(ours: str, theirs: str, depth: int, names: dict[str, tuple[str, ...]]) -> Iterator[Part]:
    for block in range(depth):
        for layer, found in names.items():
            yield from _layer(f"{ours}.{block}.{layer}", *(f"{theirs}.{block}.{name}" for name in found))


def _modalities(ours: str, theirs: str) -> Part:
    return Part(
        f"{ours}.modalities.table_2D",
        (f"{theirs}.video_mod_embed", f"{theirs}.img_mod_embed"),
        "vectors",
    )


def _embeds(encoder: EncoderConfig, form: PredictorForm) -> tuple[str, ...]:
    """Layers of the predictor's embedding: one, or the two around a GELU that take several levels."""
    return (".0", ".2") if form.kind == "masked" and encoder.num_levels > 1 else ("",)
