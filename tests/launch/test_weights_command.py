"""`foreframe import` and `foreframe export`: what they print, write and end with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UsageError
from launch.cli import main
from launch.train import run_train
from pretrain.checkpoint import StoredFragments, newest_whole
from pretrain.config import RunConfig
from pretrain.ema import Fragment
from pretrain.features import Encoder
from pretrain.model.vit import Transformer
from pretrain.objective.base import Objective
from pretrain.weights.base import Weights, build_predictor
from pretrain.weights.folder import write_folder
from pretrain.weights.huggingface import write_huggingface
from pretrain.weights.publish import TENSORS, check_out, whole_folder
from pretrain.weights.read import read_weights
from pretrain.weights.run import run_weights
from tests.pretrain.meta_layout import save
from tests.pretrain.small_weights import small_weights
from tests.small_dataset import tiny_config

SAVING = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2}


@pytest.fixture(scope="module")
def run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with checkpoints at 2 and 4; read only."""
    out = tmp_path_factory.mktemp("runs")
    return run_train(tiny_config(small_dataset, out, train=SAVING), quiet=True).run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


class Command:
    """The command line in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self._patch, self._captured = patch, captured

    def __call__(self, *words: object) -> tuple[int, str]:
        """Exit code and what was printed."""
        self._patch.setattr(sys, "argv", ["foreframe", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = self._captured.readouterr()
        return int(ended.value.code or 0), " ".join((told.out + told.err).split())


def stored(run: Path, kind: str, name: str, like: torch.Tensor) -> torch.Tensor:
    folder, manifest, _ = newest_whole(run)
    fragments = StoredFragments(folder / file for file in manifest["files"])
    return fragments.read(kind, Fragment(name, 0, like.numel())).view_as(like)


def test_export_holds_the_average_and_the_predictors_master_weights(
    run: Path, tmp_path: Path, command: Command
) -> None:
    assert command("export", run, tmp_path / "out") == (0, f"wrote {tmp_path / 'out'}")
    weights = read_weights(tmp_path / "out")
    for name, tensor in weights.tensors.items():
        part, _, bare = name.partition(".")
        found = ("target", bare) if part == "encoder" else ("master", name)
        assert torch.equal(tensor, stored(run, *found, tensor)), name
    provenance = weights.description.provenance
    assert (provenance["step"], provenance["run"], provenance["objective"]) == (4, "tiny", "masked_latent")
    assert provenance["data_fingerprint"] == newest_whole(run)[1]["data_fingerprint"]
    assert weights.description.masks[0]["kind"] == "blocks"
    clips = weights.description.clips
    assert (clips.frames, clips.size, clips.fps) == (8, 32, 8.0)
    build_predictor(weights)


def test_export_takes_another_step_or_the_context_encoder(
    run: Path, tmp_path: Path, command: Command
) -> None:
    for name, options in {"a": (), "b": ("--step", 2), "c": ("--of", "context")}.items():
        assert command("export", run, tmp_path / name, *options)[0] == 0
    found = [read_weights(tmp_path / name) for name in "abc"]
    name = "encoder.blocks.0.qkv.weight"
    assert not torch.equal(found[0].tensors[name], found[1].tensors[name])
    assert torch.equal(found[2].tensors[name], stored(run, "master", name, found[2].tensors[name]))
    assert found[1].description.provenance["step"] == 2
    code, said = command("export", run, tmp_path / "d", "--step", 3)
    assert code == 4
    assert "no checkpoint at step 3; it has: 4, 2" in said


@pytest.mark.parametrize("kind", ["pixel", "contrastive", "future_latent", "action_latent", "online"])
def test_runs_of_every_objective_are_exported(
    small_dataset: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    sizes = {"future_latent": {"action_size": 2}, "action_latent": {"action_size": 2, "state_size": 0}}
    plain = tiny_config(small_dataset, tmp_path / "runs", train={"steps": 2}).model_dump()
    if kind == "online":
        plain["target"]["kind"] = "online"
    else:
        plain["objective"] = {"kind": kind, **sizes.get(kind, {})}
    if kind == "action_latent":
        plain["target"]["kind"] = "frozen"
    config = RunConfig.model_validate(plain)
    found = run_train(config, quiet=True).run
    assert command("export", found, tmp_path / "out")[0] == 0
    weights = read_weights(tmp_path / "out")
    build_predictor(weights)
    clips = np.zeros((1, 8, 32, 32, 3), dtype=np.uint8)
    assert Encoder(weights)(clips).shape == (1, 64, 48)
    if kind in ("pixel", "future_latent", "action_latent"):
        code, said = command("export", found, tmp_path / "theirs", "--format", "huggingface")
        assert code == 2
        assert "--format foreframe" in said
    if kind == "action_latent":
        code, said = command("export", found, tmp_path / "context", "--of", "context")
        assert code == 2
        assert "trains no context encoder" in said


def test_run_to_huggingface_to_ours_to_huggingface_is_bit_exact(
    run: Path, tmp_path: Path, command: Command
) -> None:
    first, ours, second = (tmp_path / name for name in ("first", "ours", "second"))
    assert command("export", run, first, "--format", "huggingface")[0] == 0
    code, said = command("import", first, ours)
    assert code == 0
    assert "encoder.layer.*.attention.query.*" in said
    assert command("export", ours, second, "--format", "huggingface")[0] == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    command("export", run, tmp_path / "straight")
    straight = (tmp_path / "straight" / "model.safetensors").read_bytes()
    assert (ours / "model.safetensors").read_bytes() == straight


def test_import_of_a_run_reports_every_key_and_takes_either_encoder(
    run: Path, tmp_path: Path, command: Command
) -> None:
    """As an export of the same encoder, with import.json."""
    for of, options in {"target": (), "context": ("--of", "context")}.items():
        code, said = command("import", run, tmp_path / of, *options)
        assert code == 0, said
        command("export", run, tmp_path / f"{of}-exported", "--of", of)
        imported, exported = (read_weights(tmp_path / name) for name in (of, f"{of}-exported"))
        assert imported.description == exported.description
        assert all(torch.equal(t, exported.tensors[name]) for name, t in imported.tensors.items())
        report = json.loads((tmp_path / of / "import.json").read_text())
        assert set(report["taken"].values()) == set(imported.tensors)
        assert f"taken {len(imported.tensors)} keys of" in said
        theirs = "target/blocks.0.qkv.weight" if of == "target" else "master/encoder.blocks.0.qkv.weight"
        assert report["taken"][theirs] == "encoder.blocks.0.qkv.weight"
        other = "master/encoder" if of == "target" else "target"
        assert set(report["set_aside"]) == {other, "exp_avg", "exp_avg_sq"}
    code, said = command("import", run, tmp_path / "out", "--heads", 2)
    assert code == 2
    assert "is a run's folder, which tells what a .pt does not: leave all options out but --of" in said


def test_weights_of_a_run_are_read_without_drawing_any(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes are enough: drawing those of the giant takes its time and memory on every rank."""

    def drawn(*_: object) -> None:
        raise AssertionError("weights were drawn")

    monkeypatch.setattr(Objective, "initialise", drawn)
    monkeypatch.setattr(Transformer, "initialise", drawn)
    found = run_weights(run)
    assert all(tensor.device.type == "cpu" for tensor in found.tensors.values())


def test_import_of_a_pt_reports_every_key(tmp_path: Path, command: Command) -> None:
    wanted = small_weights()
    path = save(tmp_path / "vit.pt", wanted)
    told = ("--heads", 2, "--predictor-heads", 2, "--frames", 4, "--size", 32, "--fps", 4)
    code, said = command("import", path, tmp_path / "out", *told)
    assert code == 0, said
    for part in (
        "set aside 5 keys",
        "4 × target_encoder.blocks.*.attn.qkv.*",
        "V-JEPA 2",
        f"wrote {tmp_path}",
    ):
        assert part in said
    found = read_weights(tmp_path / "out")
    assert all(torch.equal(t, wanted.tensors[name]) for name, t in found.tensors.items())
    assert found.description.clips == wanted.description.clips
    assert (tmp_path / "out" / "import.json").is_file()


def test_import_is_strict_unless_told(tmp_path: Path, command: Command) -> None:
    whole = small_weights()
    tensors = {name: t for name, t in whole.tensors.items() if not name.startswith("encoder.norm")}
    write_folder(Weights(whole.description, tensors), tmp_path / "partial")
    code, said = command("import", tmp_path / "partial", tmp_path / "out")
    assert code == 4
    assert "2 missing, 0 unexpected missing encoder.norm.weight missing encoder.norm.bias" in said
    assert not (tmp_path / "out").exists()
    code, said = command("import", tmp_path / "partial", tmp_path / "out", "--allow-partial")
    assert code == 0
    assert "missing encoder.norm.bias" in said
    code, said = command("export", tmp_path / "out", tmp_path / "again")
    assert code == 4


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("import", "nowhere.pt", "out"), 2, "nowhere.pt does not exist"),
        (("import", "ours", "out", "--rope", "axial"), 2, "--rope is 'axial'"),
        (("import", "ours", "out", "--of", "both"), 2, "--of is 'both'"),
        (("import", "ours", "out", "--heads", "3"), 2, "leave the options out"),
        (("export", "ours", "ours"), 2, "ours exists"),
        (
            ("export", "ours", "out", "--format", "onnx"),
            2,
            "--format is 'onnx': need foreframe or",
        ),
        (("export", "ours", "out", "--step", "3"), 2, "is no run's folder: --step and --of are for runs"),
        (("export", "theirs", "out", "--of", "context"), 2, "is no run's folder"),
        (("export", "empty", "out"), 2, "holds no weights"),
        (
            ("import", "a.pt", "out", "--heads", "2", "--predictor-heads", "2", "--frames", "5"),
            4,
            "a.pt cannot be used: clips of 5 frames of 256 pixels a side: need multiples of the tubelet 2",
        ),
        (("export", "nowhere.pt", "out"), 2, "nowhere.pt does not exist: need a folder of"),
        (
            ("export", "a.pt", "out"),
            2,
            "no published encoder has width 48 and 2 blocks: say --heads, which tensors do not show. "
            "export has no such options, `foreframe import a.pt FOLDER` has: export FOLDER then",
        ),
    ],
)
def test_what_cannot_be_done_is_told_with_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(small_weights(), tmp_path / "ours")
    write_huggingface(small_weights(), tmp_path / "theirs")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "a.pt", small_weights())
    found = command(*words)
    assert found[0] == code, found
    assert "Value error" not in found[1]
    assert said in found[1]
    assert not (tmp_path / "out").exists()


def test_force_replaces_weights(tmp_path: Path, command: Command) -> None:
    write_folder(small_weights(), tmp_path / "a")
    write_folder(small_weights(depth=3), tmp_path / "b")
    assert command("export", tmp_path / "a", tmp_path / "b", "--force")[0] == 0
    assert read_weights(tmp_path / "b").description.model == small_weights().description.model


def test_force_removes_nothing_but_weights_and_finds_them_again(tmp_path: Path) -> None:
    """A run beside the weights stays; and what a kill left between the two steps of replacing is put back."""
    out = tmp_path / "weights"
    with whole_folder(out) as folder:
        (folder / TENSORS).write_bytes(b"first")
    (out / "run").mkdir()
    with pytest.raises(UsageError, match=r"holds run beside weights, which --force would remove"):
        check_out(out, force=True)
    (out / "run").rmdir()
    out.rename(tmp_path / ".weights.old")
    with pytest.raises(UsageError, match="exists"), whole_folder(out):
        pass
    assert (out / TENSORS).read_bytes() == b"first"
    with whole_folder(out, force=True) as folder:
        (folder / TENSORS).write_bytes(b"second")
    assert (out / TENSORS).read_bytes() == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]
