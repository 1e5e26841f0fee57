"""Meta's .pt layout, built by hand for every family; what is damaged, hostile or ambiguous is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.weights.base import PredictorForm, Weights
from pretrain.weights.folder import write_folder
from pretrain.weights.meta import Hints
from pretrain.weights.read import open_weights, read_weights
from tests.pretrain.meta_layout import meta_encoder, meta_predictor, save, wrapped
from tests.pretrain.small_weights import WIDTH, small_weights

TOLD = Hints(heads=2, predictor_heads=2, frames=4, size=32)
ACTION = PredictorForm(kind="action", out_width=WIDTH, action_size=5, state_size=3)


def same(found: Weights, wanted: Weights) -> None:
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
    assert found.description.model == wanted.description.model


def sincos(tokens_THW: tuple[int, int, int], width: int) -> Tensor:
    """V-JEPA's table by its published definition, number by number."""
    each = math.ceil(width / 6)
    rows = []
    for place in range(math.prod(tokens_THW)):
        _, height, columns = tokens_THW
        axes = place // (height * columns), place // columns % height, place % columns
        row: list[float] = []
        for position in axes:
            angles = [position / 10_000 ** (k / each) for k in range(each)]
            row += [*map(math.sin, angles), *map(math.cos, angles)]
        rows.append(row[:width])
    return torch.tensor(rows)[None]


def test_vjepa2_is_read_with_its_moving_average(tmp_path: Path) -> None:
    wanted = small_weights()
    weights, report = open_weights(save(tmp_path / "a.pt", wanted), TOLD)
    report.check()
    same(weights, wanted)
    assert report.taken["target_encoder.blocks.1.attn.qkv.bias"] == "encoder.blocks.1.qkv.bias"
    assert set(report.set_aside) == {"encoder", "opt", "scaler", "epoch", "loss"}
    assert (weights.description.clips.frames, weights.description.clips.size) == (4, 32)
    context = read_weights(tmp_path / "a.pt", TOLD.model_copy(update={"of": "context"}))
    name = "encoder.blocks.0.fc1.weight"
    assert torch.equal(context.tensors[name], wanted.tensors[name] + 1)


def test_an_encoder_alone_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", small_weights(), predictor=..., target_encoder=...)
    weights, report = open_weights(path, TOLD)
    report.check()
    assert weights.description.predictor is None
    assert not weights.part("predictor")
    with pytest.raises(UsageError, match="no target encoder, only 'encoder'"):
        open_weights(path, TOLD.model_copy(update={"of": "target"}))


def test_vjepa_is_read_with_the_grid_of_its_table(tmp_path: Path) -> None:
    wanted = small_weights(rope="none")
    tables = {"pos_embed": sincos((2, 4, 4), 48)}, {"predictor_pos_embed": sincos((2, 4, 4), 24)}
    path = save(
        tmp_path / "a.pt",
        wanted,
        target_encoder=wrapped(meta_encoder(wanted) | tables[0]),
        predictor=wrapped(meta_predictor(wanted) | tables[1]),
    )
    hints = Hints(heads=2, predictor_heads=2, rope="none")
    weights, report = open_weights(path, hints)
    report.check()
    same(weights, wanted)
    assert weights.description.grid == (2, 4, 4)
    assert "equal" in report.set_aside["target_encoder.pos_embed"]

    with pytest.raises(UsageError, match="--rope none for V-JEPA, --rope vjepa2 for V-JEPA 2"):
        open_weights(path, hints.model_copy(update={"rope": None}))
    as_second = read_weights(path, TOLD.model_copy(update={"rope": "vjepa2"}))
    same(as_second, small_weights())
    with pytest.raises(UsageError, match="holds no pos_embed"):
        open_weights(save(tmp_path / "b.pt", wanted), hints)


@pytest.mark.parametrize("part", ["encoder", "predictor"])
def test_another_table_of_positions_is_refused(tmp_path: Path, part: str) -> None:
    wanted = small_weights(rope="none")
    encoder, predictor = {"pos_embed": sincos((2, 4, 4), 48)}, {"predictor_pos_embed": sincos((2, 4, 4), 24)}
    (encoder if part == "encoder" else predictor).update(
        {("" if part == "encoder" else "predictor_") + "pos_embed": torch.randn(1, 32, 48)}
    )
    path = save(
        tmp_path / "a.pt",
        wanted,
        target_encoder=meta_encoder(wanted) | encoder,
        predictor=meta_predictor(wanted) | predictor,
    )
    with pytest.raises(CheckpointError, match="third of the channels"):
        open_weights(path, Hints(heads=2, predictor_heads=2, rope="none"))


@pytest.mark.parametrize("part", ["encoder", "predictor"])
@pytest.mark.parametrize("shape", [(2, 32, 48), (32, 48), (1, 1, 32, 48), (1, 0, 48), (1, 32, 0), (48,)])
def test_a_table_of_positions_of_another_shape_is_refused_with_a_sentence(
    tmp_path: Path, part: str, shape: tuple[int, ...]
) -> None:
    wanted = small_weights(rope="none")
    odd = torch.zeros(shape)
    encoder = {"pos_embed": odd if part == "encoder" else sincos((2, 4, 4), 48)}
    predictor = {"predictor_pos_embed": odd if part == "predictor" else sincos((2, 4, 4), 24)}
    path = save(
        tmp_path / "a.pt",
        wanted,
        target_encoder=meta_encoder(wanted) | encoder,
        predictor=meta_predictor(wanted) | predictor,
    )
    with pytest.raises(CheckpointError, match=r"pos_embed (is )?(of shape )?\("):
        open_weights(path, Hints(heads=2, predictor_heads=2, rope="none"))


def deep(form: PredictorForm, **encoder: Any) -> Weights:
    settings = {"rope": "interleaved", "pictures": "own", "rope_span": 32} | encoder
    return small_weights(form, depth=12, **settings)


def test_vjepa_2_1_is_read_with_its_levels(tmp_path: Path) -> None:
    wanted = deep(PredictorForm(out_width=4 * WIDTH, says_context=True), levels=(3, 6, 9, 12))
    path = save(tmp_path / "a.pt", wanted, norms=4)
    same(read_weights(path, TOLD), wanted)

    predictor = meta_predictor(wanted)
    for row in (1, 2):
        predictor[f"mask_tokens.{row}"] = torch.zeros(1, 1, 24)
    weights, report = open_weights(save(path, wanted, norms=4, predictor=predictor), TOLD)
    report.check()
    first = wanted.tensors["predictor.mask_tokens"][:1]
    assert torch.equal(weights.tensors["predictor.mask_tokens"], first)
    assert weights.description.model.predictor.mask_tokens == 1
    assert "zeros" in report.set_aside["predictor.mask_tokens.2"]


def test_a_distilled_vjepa_2_1_is_read_with_its_last_level(tmp_path: Path) -> None:
    wanted = deep(PredictorForm(out_width=40, says_context=True))
    encoder = meta_encoder(wanted, norms=4)
    for level in range(3):
        encoder |= {f"norms_block.{level}.{kind}": torch.ones(48) for kind in ("weight", "bias")}
    path = save(tmp_path / "a.pt", wanted, 4, ema_encoder=encoder, target_encoder=...)
    weights, report = open_weights(path, TOLD)
    report.check()
    same(weights, wanted)
    assert "distilled" in report.set_aside["ema_encoder.norms_block.0.weight"]


def test_the_action_conditioned_predictor_is_read(tmp_path: Path) -> None:
    wanted = small_weights(ACTION)
    predictor = meta_predictor(wanted) | {
        "extrinsics_encoder.weight": torch.zeros(24, 4),
        "extrinsics_encoder.bias": torch.zeros(24),
    }
    weights, report = open_weights(save(tmp_path / "a.pt", wanted, predictor=predictor), TOLD)
    report.check()
    assert weights.description.predictor == ACTION
    assert {name: t.shape for name, t in weights.tensors.items()} == {
        name: t.shape for name, t in wanted.tensors.items()
    }
    assert torch.equal(
        weights.tensors["predictor.embed_state.weight"], wanted.tensors["predictor.embed_state.weight"]
    )
    assert "does not use it" in report.set_aside["predictor.extrinsics_encoder.bias"]


def test_every_key_missing_unexpected_or_of_another_shape_is_named(tmp_path: Path) -> None:
    wanted = small_weights()
    encoder = meta_encoder(wanted)
    del encoder["blocks.1.norm2.bias"], encoder["norm.weight"]
    encoder |= {"blocks.0.mlp.fc3.weight": torch.ones(3), "cls_token": torch.ones(1, 1, 48)}
    encoder["blocks.0.attn.proj.weight"] = torch.ones(48, 47)
    path = save(tmp_path / "a.pt", wanted, target_encoder=encoder, classifier={"weight": torch.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        read_weights(path, TOLD)
    said = str(caught.value)
    assert "2 missing, 3 unexpected, 1 unfit" in said
    for line in (
        "missing     target_encoder.blocks.1.norm2.bias",
        "missing     target_encoder.norm.weight",
        "unexpected  target_encoder.blocks.0.mlp.fc3.weight",
        "unexpected  target_encoder.cls_token",
        "unexpected  classifier",
        "unfit       target_encoder.blocks.0.attn.proj.weight: (48, 47), need (48, 48)",
    ):
        assert line in said
    partial = read_weights(path, TOLD, allow_partial=True)
    lacking = {"encoder.blocks.1.norm2.bias", "encoder.norm.weight", "encoder.blocks.0.proj.weight"}
    assert partial.tensors.keys() == wanted.tensors.keys() - lacking


@pytest.mark.parametrize(
    ("hints", "said"),
    [
        (Hints(predictor_heads=2), "no published encoder has width 48 and 2 blocks: say --heads"),
        (Hints(heads=2), "no published predictor is 24 wide: say --predictor-heads"),
    ],
)
def test_heads_are_asked_for_where_they_are_not_known(tmp_path: Path, hints: Hints, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_weights(save(tmp_path / "a.pt", small_weights()), hints)


def measured(tmp_path: Path, width: int, depth: int, inside: int, **others: Tensor) -> Weights:
    """What is made of a file's names and shapes, with no tensor but those that tell something."""
    hidden = 6144 if width == 1408 else 4 * width
    encoder = {
        "patch_embed.proj.weight": torch.zeros(width, 3, 2, 16, 16),
        "blocks.0.mlp.fc1.weight": torch.zeros(1).expand(hidden, width),
        f"blocks.{depth - 1}.norm1.weight": torch.zeros(width),
    }
    predictor = {
        "predictor_norm.weight": torch.zeros(inside),
        "predictor_blocks.11.norm1.bias": torch.zeros(1),
    }
    for name, tensor in others.items():
        (predictor if name.startswith("action") else encoder)[name.replace("__", ".")] = tensor
    torch.save({"target_encoder": encoder, "predictor": predictor}, tmp_path / "a.pt")
    hints = Hints(rope="none") if "pos_embed" in others else Hints()
    return open_weights(tmp_path / "a.pt", hints)[0]


def test_a_predictor_has_the_heads_that_its_release_built_it_with(tmp_path: Path) -> None:
    """V-JEPA: as many as the encoder; V-JEPA 2 and 2.1: 12, by config; 2-AC: 16. Shapes are the same."""

    def heads(width: int, depth: int, inside: int, **others: Tensor) -> int:
        return measured(tmp_path, width, depth, inside, **others).description.model.predictor.heads

    assert heads(1024, 24, 384, pos_embed=sincos((2, 2, 2), 1024)) == 16
    assert heads(1280, 32, 384, pos_embed=sincos((2, 2, 2), 1280)) == 16
    assert heads(1024, 24, 384) == 12
    assert heads(1280, 32, 384) == 12
    norms = {f"norms_block__{level}__weight": torch.zeros(1024) for level in range(4)}
    assert heads(1024, 24, 384, img_mod_embed=torch.zeros(1, 1, 1024), **norms) == 12
    assert heads(1408, 40, 1024, action_encoder__weight=torch.zeros(1024, 7)) == 16


def test_a_published_width_of_another_depth_is_asked_about(tmp_path: Path) -> None:
    cut = small_weights(width=192, heads=3)
    path = save(tmp_path / "a.pt", cut, predictor=...)
    with pytest.raises(UsageError, match=r"vit_tiny has 12 blocks: was the file cut\?"):
        open_weights(path, Hints())
    same_depth = small_weights(width=192, heads=3, depth=12)
    weights = read_weights(save(path, same_depth, predictor=...), Hints())
    assert weights.description.model.encoder.shape[:3] == (192, 12, 3)


def test_numbers_that_are_not_finite_in_float32_are_refused(tmp_path: Path) -> None:
    wanted = small_weights()
    encoder = meta_encoder(wanted)
    encoder["norm.weight"] = encoder["norm.weight"].clone()
    encoder["norm.weight"][3] = torch.nan
    encoder["norm.bias"] = torch.full((48,), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError) as caught:
        read_weights(save(tmp_path / "a.pt", wanted, target_encoder=encoder), TOLD)
    assert "norm.weight: 1 of 48 numbers are not finite in float32" in str(caught.value)
    assert "norm.bias: 48 of 48 numbers are not finite" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        (
            "target_encoder",
            "patch_embed.proj.weight",
            torch.tensor(1.0),
            "patch_embed.proj.weight is missing",
        ),
        (
            "target_encoder",
            "norm.weight",
            torch.ones(48).to_sparse(),
            "missing     target_encoder.norm.weight",
        ),
        ("target_encoder", "blocks.999999999.norm1.weight", torch.ones(48), "its number is too large"),
        (
            "target_encoder",
            "blocks.900.norm1.weight",
            torch.ones(48),
            "missing     target_encoder.blocks.899",
        ),
        ("predictor", "mask_tokens.999999999", torch.ones(1, 1, 24), "its number is too large"),
        ("predictor", "predictor_norm.weight", torch.ones(2, 12), "predictor_norm.weight is of shape"),
        ("predictor", "predictor_proj.weight", torch.ones(48), "predictor_proj.weight is of shape"),
        ("predictor", "module.predictor_norm.weight", torch.ones(24), "holds predictor_norm.weight twice"),
    ],
)
def test_tensors_that_make_no_model_are_refused_with_a_sentence(
    tmp_path: Path, part: str, name: str, value: torch.Tensor, said: str
) -> None:
    wanted = small_weights()
    state = meta_encoder(wanted) if part == "target_encoder" else meta_predictor(wanted)
    path = save(tmp_path / "a.pt", wanted, **{part: state | {name: value}})
    with pytest.raises(CheckpointError, match=said):
        read_weights(path, TOLD)


def test_a_predictor_that_is_none_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'predictor' holds a list, need tensors by name"):
        open_weights(save(tmp_path / "a.pt", small_weights(), predictor=[1]), TOLD)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path, is_zip: bool) -> None:
    mark = tmp_path / "ran"
    plain = {"encoder": {"norm.weight": torch.ones(3)}, "args": Hostile(mark)}
    torch.save(plain, tmp_path / "bad.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"bad.pt holds posix.system, .* not opened"):
        open_weights(tmp_path / "bad.pt")
    assert not mark.exists()


def test_a_file_that_was_cut_or_is_none_is_refused_with_a_sentence(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pt", small_weights()).read_bytes()
    old = tmp_path / "old.pt"
    torch.save({"encoder": {"norm.weight": torch.ones(3000)}}, old, _use_new_zipfile_serialization=False)
    flipped = bytearray(whole)
    flipped[60:400] = bytes(340)
    contents = {
        "half": whole[: len(whole) // 2],
        "end": whole[:-5],
        "empty": b"",
        "text": b"<html>404: not found</html>",
        "zeros": bytes(5000),
        "flipped": bytes(flipped),
        "old": old.read_bytes()[:4000],
        "older": old.read_bytes()[:150],
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}.pt is cut short or damaged"):
            open_weights(path, TOLD)
    for name, plain in {"list": [1], "other": {"model": {"a": torch.ones(2)}}}.items():
        torch.save(plain, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=r"holds a list|is no checkpoint of Meta's.* holds model"):
            open_weights(tmp_path / f"{name}.pt", TOLD)


def test_the_report_lists_every_key_and_is_short_to_read(tmp_path: Path) -> None:
    weights, report = open_weights(save(tmp_path / "a.pt", small_weights(depth=12)), TOLD)
    plain = report.plain()
    assert set(plain["taken"].values()) == set(weights.tensors)
    lines = report.lines()
    assert len(lines) < 50
    assert any("24 × target_encoder.blocks.*.attn.qkv.*" in line for line in lines)
    write_folder(weights, tmp_path / "out", report)
    assert "target_encoder.blocks.11.attn.qkv.bias" in (tmp_path / "out" / "import.json").read_text()
