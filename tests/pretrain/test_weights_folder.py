"""Our own folder of weights: whole or not there, bit-exact, and refused where it is not what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.weights import publish
from pretrain.weights.base import PredictorForm, Weights, build_encoder, build_predictor
from pretrain.weights.folder import read_folder, write_folder
from pretrain.weights.names import huggingface_parts, meta_parts
from pretrain.weights.read import open_weights, read_weights
from tests.pretrain.small_weights import WIDTH, small_weights

FORMS = {
    "masked": small_weights(),
    "levels": small_weights(levels=(1, 2), pictures="own", rope="interleaved", rope_span=4),
    "action": small_weights(PredictorForm(kind="action", out_width=WIDTH, action_size=5, state_size=3)),
    "future": small_weights(PredictorForm(kind="action", out_width=WIDTH, has_mask_token=True)),
    "context": small_weights(PredictorForm(out_width=30, says_context=True), rope="none"),
}


@pytest.mark.parametrize("weights", FORMS.values(), ids=FORMS.keys())
def test_every_kind_of_weights_comes_back_bit_for_bit(tmp_path: Path, weights: Weights) -> None:
    write_folder(weights, tmp_path / "a")
    found = read_weights(tmp_path / "a")
    assert found.description == weights.description
    write_folder(found, tmp_path / "b")
    for name in ("model.safetensors", "model.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1
    assert sorted(os.listdir(tmp_path / "a")) == ["README.md", "model.json", "model.safetensors"]
    for module, part in ((build_encoder(found), "encoder"), (build_predictor(found), "predictor")):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, weights.tensors[f"{part}.{name}"])
            assert not parameter.requires_grad


@pytest.mark.parametrize("kind", ["meta", "huggingface"])
def test_names_go_both_ways_without_loss(kind: str) -> None:
    for weights in FORMS.values() if kind == "meta" else [FORMS["masked"]]:
        model, form = weights.description.model, weights.description.predictor
        norms = len(model.encoder.levels)
        parts = meta_parts(model, form, num_norms=norms) if kind == "meta" else huggingface_parts(model, form)
        names = [name for part in parts for name in part.theirs]
        assert len(set(names)) == len(names)
        found = {
            part.ours: part.joined([part.parted(weights.tensors[part.ours])[name] for name in part.theirs])
            for part in parts
        }
        stays = {"predictor.mask_token"}  # only of foreframe's future prediction, which Meta does not have
        assert found.keys() == weights.tensors.keys() - stays
        assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in found.items())


def test_the_card_says_what_the_weights_are_and_where_from(tmp_path: Path) -> None:
    write_folder(small_weights(), tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    for said in (
        "width 48, 2 blocks, 2 heads",
        ": a video encoder of 2 blocks, 48 wide",
        "4 frames of 32 × 32 at 4 frames",
        "0.485",
        "| step | 7 |",
        "tubes",
    ):
        assert said in card, said
    assert "fills hidden tokens in" in card


def test_what_is_there_is_replaced_only_when_told_and_only_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(small_weights(), out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"out exists: .* --force"):
        write_folder(small_weights(depth=3), out)
    assert (out / "model.safetensors").read_bytes() == before
    write_folder(small_weights(depth=3), out, force=True)
    assert (out / "model.safetensors").read_bytes() != before

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is no folder of weights"):
        write_folder(small_weights(), precious, force=True)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UsageError, match="is no folder of weights"):
        write_folder(small_weights(), tmp_path / "link", force=True)
    assert os.listdir(precious) == ["thesis.tex"]
    assert sorted(os.listdir(tmp_path)) == ["link", "out", "precious"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("force", [False, True])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, force: bool
) -> None:
    out = tmp_path / "out"
    if force:
        write_folder(small_weights(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if force else None

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pretrain.weights.folder.own_card", fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        write_folder(small_weights(depth=3), out, force=force)
    assert os.listdir(tmp_path) == (["out"] if force else [])
    if force:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_killed_write_leaves_nothing_under_its_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    """SIGKILL between the tensors and the card."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pretrain.weights import folder\n"
        "from tests.pretrain.small_weights import small_weights\n"
        "folder.own_card = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "folder.write_folder(small_weights(), Path(sys.argv[1]))\n"
    )
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=Path(__file__).parents[2], timeout=120, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".out.part"]
    write_folder(small_weights(), out)
    assert os.listdir(tmp_path) == ["out"]
    read_weights(out)


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with publish.whole_folder(tmp_path / "out") as folder:
        (folder / "mine").touch()
        with pytest.raises(UsageError, match="another process is writing"):
            write_folder(small_weights(), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format version 2; this release reads 1"),
        ({"clips": {"frames": 0, "size": 32}}, "clips.frames: Input should be greater"),
        ({"clips": {"frames": 10**9, "size": 32}}, "clips.frames: Input should be less"),
        (
            {"clips": {"frames": 4, "size": 33}},
            "33 pixels a side: need multiples of the tubelet 2 and the patch 8",
        ),
        ({"model": {"encoder": {"preset": "vit_tiny", "depth": 10**9}}}, "depth: Input should be less"),
        ({"model": {"predictor": {"mask_tokens": 10**9}}}, "mask_tokens: Input should be less"),
        ({"rotation": 3}, "rotation: Extra inputs"),
        ({"predictor": None}, "unexpected  predictor.embed.weight"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    write_folder(small_weights(), tmp_path / "a")
    path = tmp_path / "a" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        read_weights(tmp_path / "a")


def test_damaged_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    write_folder(small_weights(), tmp_path / "a")
    tensors = tmp_path / "a" / "model.safetensors"
    whole = tensors.read_bytes()
    for content in (whole[:-7], whole[:100], b"", b"x" * 300):
        tensors.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.safetensors is cut short or damaged"):
            read_folder(tmp_path / "a")
    tensors.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        read_folder(tmp_path / "a")
    for content in ("{", '{"a":' + "[" * 100_000):
        (tmp_path / "a" / "model.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"model.json is no JSON that can be read"):
            read_folder(tmp_path / "a")


def test_what_holds_no_weights_is_named_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_weights(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no weights: need model.safetensors"):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UsageError, match=r"pytorch_model.bin, a pickle: save the model once more"):
        open_weights(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UsageError, match="name the folder"):
        open_weights(tmp_path / "a.safetensors")


def test_partial_weights_build_what_is_whole(tmp_path: Path) -> None:
    whole = small_weights()
    tensors = {name: t for name, t in whole.tensors.items() if name != "predictor.out.bias"}
    write_folder(Weights(whole.description, tensors), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"missing     predictor.out.bias"):
        read_weights(tmp_path / "a")
    weights = read_weights(tmp_path / "a", allow_partial=True)
    build_encoder(weights)
    with pytest.raises(CheckpointError, match=r"lack predictor.out.bias"):
        build_predictor(weights)
