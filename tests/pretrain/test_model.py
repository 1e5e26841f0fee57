"""The encoder and predictor against references: transformers' V-JEPA 2, and clips run one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pretrain.config import EncoderConfig, PredictorConfig
from pretrain.model.attention import Packing, attend
from pretrain.model.positions import rope_table, rotate
from pretrain.model.predictor import Predictor
from pretrain.model.vit import Encoder

GRID = (2, 4, 4)
CONFIG = EncoderConfig(preset="vit_tiny", width=48, depth=3, heads=2, patch=8)


def make_encoder(config: EncoderConfig = CONFIG, grid: tuple[int, int, int] = GRID) -> Encoder:
    encoder = Encoder(config, grid)
    encoder.initialise(torch.Generator().manual_seed(0))
    return encoder


def clips(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def test_packed_attention_equals_each_sequence_alone() -> None:
    lengths = (5, 1, 9, 3)
    qkv = torch.randn(3, 18, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = attend(*qkv.unbind(0), Packing(lengths), "sdpa")
    rows = []
    for q, k, v in zip(*(part.split(lengths) for part in qkv.unbind(0)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
        rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    wanted = torch.cat(rows)
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=0)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((out * weights).sum(), qkv, retain_graph=True)
    (grad_wanted,) = torch.autograd.grad((wanted * weights).sum(), qkv)
    torch.testing.assert_close(grad, grad_wanted, atol=1e-5, rtol=0)


def test_kept_tokens_packed_equal_each_clip_alone() -> None:
    encoder, x = make_encoder(), clips()
    kept = [torch.tensor([0, 3, 17, 31]), torch.arange(32), torch.tensor([8])]
    source = torch.cat([clip * 32 + tokens for clip, tokens in enumerate(kept)])
    packed = encoder.encode_kept(x, source, Packing([len(tokens) for tokens in kept]))
    for clip, (tokens, found) in enumerate(zip(kept, packed.split([4, 32, 1]), strict=True)):
        alone = encoder.encode_kept(x[clip : clip + 1], tokens, Packing([len(tokens)]))
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_keeping_every_token_equals_the_whole_clip() -> None:
    encoder, x = make_encoder(), clips(2)
    whole = encoder(x)
    packed = encoder.encode_kept(x, torch.arange(64), Packing([32, 32]))
    torch.testing.assert_close(whole.flatten(0, 1), packed, atol=1e-6, rtol=0)


def test_recomputing_blocks_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        encoder = make_encoder()
        encoder.recompute = recompute
        encoder(clips()).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and recomputed is not None
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-6)


def test_interleaved_rotation_depends_on_distance_only() -> None:
    """With both channels of a pair turned alike, q·k at two places depends on their distance alone."""
    table = rope_table((1, 1, 12), 12, "interleaved")
    q, k = torch.randn(2, 1, 1, 12, generator=torch.Generator().manual_seed(0))

    def score(a: int, b: int) -> Tensor:
        return (rotate(q, table[:, a : a + 1]) * rotate(k, table[:, b : b + 1])).sum()

    torch.testing.assert_close(score(2, 5), score(6, 9))
    assert abs(float(score(2, 5) - score(2, 9))) > 1e-3


def test_encoder_equals_transformers_vjepa2() -> None:
    """Same weights, same clips: our encoder against the reference port of the released one, to 1e-5."""
    transformers = pytest.importorskip("transformers")
    theirs_config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=3,
        mlp_ratio=4,
        drop_path_rate=0.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = transformers.VJEPA2Model(theirs_config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = make_encoder().eval()
    state = theirs.encoder.state_dict()
    mine = {
        "embed.weight": state["embeddings.patch_embeddings.proj.weight"],
        "embed.bias": state["embeddings.patch_embeddings.proj.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for block in range(3):
        source, target = f"layer.{block}.", f"blocks.{block}."
        for kind in ("weight", "bias"):
            qkv = [state[f"{source}attention.{part}.{kind}"] for part in ("query", "key", "value")]
            mine[f"{target}qkv.{kind}"] = torch.cat(qkv)
            mine[f"{target}proj.{kind}"] = state[f"{source}attention.proj.{kind}"]
            for name in ("norm1", "norm2"):
                mine[f"{target}{name}.{kind}"] = state[f"{source}{name}.{kind}"]
            for name in ("fc1", "fc2"):
                mine[f"{target}{name}.{kind}"] = state[f"{source}mlp.{name}.{kind}"]
    ours.load_state_dict(mine)
    x = clips(2)
    with torch.no_grad():
        wanted = theirs(pixel_values_videos=x.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(ours(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("vit_large", 303.9), ("vit_huge", 631.6), ("vit_giant", 1012.0), ("vit_gigantic", 1844.0)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, millions: float) -> None:
    config = EncoderConfig.model_validate({"preset": preset})
    with torch.device("meta"):
        encoder = Encoder(config, (8, 16, 16))
    found = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert found == pytest.approx(millions, rel=5e-4)


def test_no_parameter_is_left_uninitialised() -> None:
    encoder = Encoder(CONFIG, GRID)
    predictor = Predictor(PredictorConfig(depth=2, width=24, heads=2), 48, GRID, 2, "vjepa2")
    for module in (encoder, predictor):
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
        module.initialise(torch.Generator().manual_seed(0))
        for name, parameter in module.named_parameters():
            assert torch.isfinite(parameter).all(), name


def test_predictor_depends_on_the_mask_kind_and_on_no_other_sequence() -> None:
    predictor = Predictor(PredictorConfig(depth=2, width=24, heads=2), 48, GRID, 2, "vjepa2")
    predictor.initialise(torch.Generator().manual_seed(0))
    nn.init.normal_(predictor.mask_tokens)
    places = torch.arange(64)
    kept, hidden = places[places % 4 == 0], places[places % 4 != 0]
    context = torch.randn(16, 48, generator=torch.Generator().manual_seed(3))
    same = torch.cat([context[:8], context[:8]])
    first, second = predictor(same, kept, hidden, 2).chunk(2)
    assert not torch.allclose(first, second), "two kinds have mask tokens of their own"
    changed = predictor(torch.cat([context[:8], context[8:]]), kept, hidden, 2)
    torch.testing.assert_close(changed[:24], first, atol=1e-6, rtol=0)
