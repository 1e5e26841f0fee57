"""The encoder and predictor against references: transformers' V-JEPA 2, and clips run one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.config import EncoderConfig
from pretrain.model.attention import Backend, Packing, attend
from pretrain.model.positions import Grid, rope_table, rotate, sincos_table
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


def padded(encoder: Encoder, x: Tensor, kept: list[Tensor]) -> list[Tensor]:
    """The encoder's arithmetic over sequences padded to the longest, attention written out: the reference."""
    longest, heads = max(map(len, kept)), CONFIG.shape[2]
    weight = encoder.embed.weight
    whole = torch.nn.functional.conv3d(x, weight, encoder.embed.bias, stride=tuple(weight.shape[2:]))
    rows = torch.zeros(len(kept), longest, encoder.width)
    places = torch.zeros(len(kept), longest, dtype=torch.long)
    filled = torch.zeros(len(kept), longest, dtype=torch.bool)
    for clip, tokens in enumerate(kept):
        rows[clip, : len(tokens)] = whole.flatten(2).transpose(1, 2)[clip, tokens]
        places[clip, : len(tokens)], filled[clip, : len(tokens)] = tokens, True
    table = rope_table(GRID, encoder.head_width, CONFIG.rope)[:, places]
    for block in encoder.blocks:
        normed = nn.functional.layer_norm(rows, rows.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in block.qkv(normed).chunk(3, dim=-1))

        def turned(part: Tensor) -> Tensor:
            pairs = part.unflatten(-1, (-1, 2))
            other = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
            return part * table[0][:, :, None] + other * table[1][:, :, None]

        scores = torch.einsum("bqhd,bkhd->bhqk", turned(q), turned(k)) / encoder.head_width**0.5
        scores = scores.masked_fill(~filled[:, None, None], -1e30)
        rows = rows + block.proj(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2))
        normed = nn.functional.layer_norm(rows, rows.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
        rows = rows + block.fc2(nn.functional.gelu(block.fc1(normed)))
    rows = nn.functional.layer_norm(rows, rows.shape[-1:], encoder.norm.weight, encoder.norm.bias, 1e-6)
    return [row[: len(tokens)] for row, tokens in zip(rows, kept, strict=True)]


def test_packed_equals_padded_gradients_too() -> None:
    kept = [torch.tensor([0, 3, 17, 31]), torch.arange(32), torch.tensor([8]), torch.arange(5, 20)]
    x = clips(4)
    source = torch.cat([clip * 32 + tokens for clip, tokens in enumerate(kept)])
    gradients, outputs = [], []
    weights = torch.randn(len(source), 48, generator=torch.Generator().manual_seed(7))
    for is_packed in (True, False):
        encoder = make_encoder()
        with torch.no_grad():  # away from the small weights of the start, where attention is flat
            for parameter in encoder.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
        own = x.clone().requires_grad_()
        out = (
            encoder(own, source, Packing([len(tokens) for tokens in kept]))
            if is_packed
            else torch.cat(padded(encoder, own, kept))
        )
        (out * weights).sum().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in encoder.named_parameters()} | {"clips": own.grad})
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradients[1][name] is not None, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient / scale, gradients[1][name] / scale, atol=1e-5, rtol=0, msg=name)


def test_kept_tokens_packed_equal_each_clip_alone() -> None:
    encoder, x = make_encoder(), clips()
    kept = [torch.tensor([0, 3, 17, 31]), torch.arange(32), torch.tensor([8])]
    source = torch.cat([clip * 32 + tokens for clip, tokens in enumerate(kept)])
    packed = encoder(x, source, Packing([len(tokens) for tokens in kept]))
    for clip, (tokens, found) in enumerate(zip(kept, packed.split([4, 32, 1]), strict=True)):
        alone = encoder(x[clip : clip + 1], tokens, Packing([len(tokens)]))
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_keeping_every_token_equals_the_whole_clip() -> None:
    encoder, x = make_encoder(), clips(2)
    whole = encoder(x)
    packed = encoder(x, torch.arange(64), Packing([32, 32]))
    torch.testing.assert_close(whole.flatten(0, 1), packed, atol=1e-6, rtol=0)


def test_recomputing_any_blocks_changes_no_bit_of_any_gradient() -> None:
    gradients = []
    for whole, mlps in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)):
        encoder = make_encoder()
        encoder.recompute(whole, mlps)
        encoder(clips()).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, *others in zip(*gradients, strict=True):
        assert plain is not None and all(torch.equal(plain, other) for other in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' attention runs on CUDA only")
@pytest.mark.parametrize("head_width", [32, 64])
def test_xformers_and_sdpa_agree_in_bf16_within_its_precision(head_width: int) -> None:
    """Both against float32: packed unequal lengths, forward and backward."""
    pytest.importorskip("xformers")
    lengths = (300, 17, 1, 1024, 511)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, sum(lengths), 4, head_width, generator=generator).cuda()
    weights = torch.randn(sum(lengths), 4, head_width, generator=generator).cuda()
    packing = Packing(lengths, "cuda")

    def passed(backend: Backend, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = qkv.to(dtype).requires_grad_()
        out = attend(*own.unbind(0), packing, backend)
        (gradient,) = torch.autograd.grad((out.float() * weights).sum(), own)
        return out.float(), gradient.float()

    exact = passed("sdpa", torch.float32)
    for backend in ("xformers", "sdpa"):
        for found, wanted in zip(passed(backend, torch.bfloat16), exact, strict=True):  # type: ignore[arg-type]
            assert float((found - wanted).norm() / wanted.norm()) < 0.01, backend


@settings(max_examples=15, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    clips=st.integers(1, 3),
    rope=st.sampled_from(["vjepa2", "interleaved", "none"]),
    levels=st.sampled_from([(), (1, 2)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_features_have_the_shape_dtype_and_values_that_follow_from_the_input(
    grid: Grid, clips: int, rope: str, levels: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    config = EncoderConfig.model_validate(
        {
            "preset": "vit_tiny",
            "width": 24,
            "depth": 2,
            "heads": 2,
            "patch": 4,
            "rope": rope,
            "levels": levels,
        }
    )
    encoder = make_encoder(config, grid).to(dtype)
    x = torch.randn(
        clips, 3, 2 * grid[0], 4 * grid[1], 4 * grid[2], generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        first, all_levels = encoder(x), encoder(x, all_levels=True)
        tokens = grid[0] * grid[1] * grid[2]
        assert first.shape == (clips, tokens, 24) and first.dtype == dtype
        assert all_levels.shape == (clips, tokens, 24 * max(1, len(levels)))
        assert torch.equal(first, encoder(x)) and torch.equal(all_levels[..., -24:], first)
        assert bool(torch.isfinite(first).all())


def test_interleaved_rotation_depends_on_distance_only() -> None:
    """With both channels of a pair turned alike, q·k at two places depends on their distance alone."""
    table = rope_table((1, 1, 12), 12, "interleaved")
    q, k = torch.randn(2, 1, 1, 12, generator=torch.Generator().manual_seed(0))

    def score(a: int, b: int) -> Tensor:
        return (rotate(q, table[:, a : a + 1]) * rotate(k, table[:, b : b + 1])).sum()

    torch.testing.assert_close(score(2, 5), score(6, 9))
    assert abs(float(score(2, 5) - score(2, 9))) > 1e-3


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
    config = EncoderConfig(
        preset="vit_tiny", width=48, depth=3, heads=2, patch=8, levels=(1, 2, 3), pictures="own"
    )
    encoder = Encoder(config, GRID)
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    encoder.initialise(torch.Generator().manual_seed(0))
    for name, parameter in encoder.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_initial_weights_are_the_published_ones() -> None:
    config = EncoderConfig(preset="vit_small", depth=3)
    encoder = Encoder(config, GRID)
    encoder.initialise(torch.Generator().manual_seed(0), 0.02)
    for number, block in enumerate(encoder.blocks, start=1):
        shrink = (2 * number) ** 0.5
        assert float(block.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert float(block.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert float(block.proj.weight.detach().std()) == pytest.approx(0.02 / shrink, rel=0.02)
        assert float(block.fc2.weight.detach().std()) == pytest.approx(0.02 / shrink, rel=0.02)
        assert float(block.qkv.bias.detach().abs().max()) == 0.0
        assert float((block.norm1.weight - 1).detach().abs().max()) == 0.0


def test_sines_and_cosines_are_added_where_nothing_is_turned() -> None:
    """V-JEPA 1's fixed table: a third of the channels each for time, row and column, sines then cosines."""
    table = sincos_table((3, 4, 5), 48)
    assert table.shape == (60, 48)
    token = (2 * 4 + 3) * 5 + 1  # time 2, row 3, column 1
    omega = [1 / 10_000 ** (i / 8) for i in range(8)]
    wanted = [f(place * w) for place in (2, 3, 1) for f in (math.sin, math.cos) for w in omega]
    assert table[token].tolist() == pytest.approx(wanted, abs=1e-6)
    assert sincos_table((1, 1, 2), 44).shape == (2, 44), "a width that no three axes share is cut"
    config = EncoderConfig(preset="vit_tiny", width=48, depth=1, heads=2, patch=8, rope="none")
    encoder = make_encoder(config)
    with torch.no_grad():
        encoder.embed.weight.zero_()
        by_hand = encoder.blocks[0](sincos_table(GRID, 48), None, Packing([32]), "sdpa")
        torch.testing.assert_close(encoder(clips(1))[0], encoder.norm(by_hand), atol=1e-6, rtol=0)


def test_other_sizes_of_clips_are_encoded_too() -> None:
    """Rotary positions go on; the added table is stretched; 2.1's rows and columns keep their span."""
    x = torch.randn(1, 3, 8, 48, 40, generator=torch.Generator().manual_seed(1))
    for rope in ("vjepa2", "interleaved", "none"):
        encoder = make_encoder(CONFIG.model_copy(update={"rope": rope}))
        assert encoder(x).shape == (1, 4 * 6 * 5, 48)
    once, twice = (rope_table((2, side, side), 24, "interleaved", span=4) for side in (4, 7))
    corner = lambda table, side: table[:, [0, side - 1, side * side - 1]]  # noqa: E731
    torch.testing.assert_close(corner(once, 4), corner(twice, 7))
    torch.testing.assert_close(twice[:, 2], rope_table((1, 1, 2), 24, "interleaved")[:, 1])


def test_levels_are_taken_shallow_to_deep_each_with_its_own_norm() -> None:
    config = EncoderConfig(preset="vit_tiny", width=48, depth=3, heads=2, patch=8, levels=(1, 3))
    encoder, x = make_encoder(config), clips(2)
    with torch.no_grad():
        encoder.level_norms[0].weight.fill_(2.0)
        both, last = encoder(x, all_levels=True), encoder(x)
    assert both.shape == (2, 32, 96)
    torch.testing.assert_close(both[..., 48:], last)
    torch.testing.assert_close(
        both[..., :48].var(-1, unbiased=False), torch.full((2, 32), 4.0), atol=0.1, rtol=0
    )
    with pytest.raises(ValueError, match="rising numbers that end with the depth 3"):
        EncoderConfig(depth=3, levels=(3, 1))


def test_a_picture_with_tokens_of_its_own_is_what_it_is_alone() -> None:
    config = EncoderConfig(preset="vit_tiny", width=48, depth=2, heads=2, patch=8, pictures="own")
    encoder, x = make_encoder(config), clips(2)
    with torch.no_grad():
        assert encoder.modalities is not None
        nn.init.normal_(encoder.modalities.table_2D, generator=torch.Generator().manual_seed(2))
    x[1] = x[1, :, :1]
    source = torch.cat([torch.arange(32), 32 + torch.arange(16)])
    mixed = encoder(x, source, Packing([32, 16]), (False, True))
    torch.testing.assert_close(mixed[:32], encoder(x[:1])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[32:], encoder(x[1:, :, :1])[0], atol=1e-5, rtol=0)
    as_clip = encoder(x, source, Packing([32, 16]), (False, False))
    assert not torch.allclose(as_clip[32:], mixed[32:], atol=1e-2), "its embedding is its own"
    for pictures in ((False, False), (True, True)):  # every weight has a gradient on every rank
        encoder.zero_grad()
        encoder(x, torch.arange(16), Packing([16]), pictures).sum().backward()
        assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_frames_see_no_later_frames() -> None:
    """Causal attention by moments: what comes later changes nothing before, and all of a moment is seen."""
    packing = Packing([12, 12], frame=4)
    q, k, v = torch.randn(3, 24, 2, 8, generator=torch.Generator().manual_seed(0))
    before = attend(q, k, v, packing, "sdpa")
    for moment in range(3):
        changed = v.clone()
        changed[moment * 4] += 1.0  # in the first sequence
        differs = (attend(q, k, changed, packing, "sdpa") - before).abs().amax((1, 2)) > 1e-7
        assert differs.tolist() == [row // 4 >= moment for row in range(12)] + [False] * 12
