"""Damage of every kind, met by a resume as a user starts it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.errors import CheckpointError, ConfigError
from launch.train import run_train
from pretrain.checkpoint import newest_whole, step_folders
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config

SAVING = {"steps": 12, "checkpoint_every": 4, "keep_checkpoints": 5}


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    return run_train(tiny_config(small_dataset, out, train=SAVING), quiet=True).run


@pytest.fixture(scope="module")
def other_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shapes and data, from another seed."""
    out = tmp_path_factory.mktemp("runs")
    return run_train(tiny_config(small_dataset, out, train=SAVING, seed=7), quiet=True).run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(whole_run, tmp_path / whole_run.name))
    (copied / "result.json").unlink()
    return copied


def curve(run: Path) -> list[tuple[int, float, str]]:
    return [(line["step"], line["loss"], line["batch_digest"]) for line in read_metrics(run)]


def file_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def flip(folder: Path, other: Path) -> None:
    data = bytearray(file_of(folder).read_bytes())
    data[len(data) // 2] ^= 1
    file_of(folder).write_bytes(data)


def edit(key: str, before: int, after: int) -> Callable[[Path, Path], None]:
    def change(folder: Path, other: Path) -> None:
        text = (folder / "manifest.json").read_text()
        assert f'"{key}": {before},' in text
        (folder / "manifest.json").write_text(text.replace(f'"{key}": {before},', f'"{key}": {after},'))

    return change


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "flipped": flip,
    "cut": lambda folder, _: file_of(folder).write_bytes(file_of(folder).read_bytes()[:-4]),
    "missing": lambda folder, _: file_of(folder).unlink(),
    "a foreign file": lambda folder, other: shutil.copy(file_of(other), file_of(folder)),
    "a foreign manifest": lambda folder, other: shutil.copy(other / "manifest.json", folder),
    "no manifest": lambda folder, _: (folder / "manifest.json").unlink(),
    "samples edited": edit("samples", 32, 33),
    "optimizer's step edited": edit("optimizer_step", 8, 9),
    "an older release's": edit("format_version", 4, 2),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_resume_passes_over_what_is_damaged_and_is_the_same_run(
    run: Path, whole_run: Path, other_run: Path, small_dataset: Path, tmp_path: Path, name: str
) -> None:
    """The last one is gone, the one before damaged: it goes on from the first."""
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    name_of = "checkpoints/step-00000008"
    DAMAGES[name](run / name_of, other_run / name_of)
    run_train(tiny_config(small_dataset, tmp_path, train=SAVING), quiet=True)
    assert curve(run) == curve(whole_run)
    found, manifest, passed = newest_whole(run)
    assert (found.name, passed) == ("step-00000012", [])
    assert manifest["files"] == newest_whole(whole_run)[1]["files"], "to the last bit"


def test_a_whole_checkpoint_of_another_run_is_refused_by_name(
    run: Path, other_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    name = "checkpoints/step-00000012"
    shutil.rmtree(run / name)
    shutil.copytree(other_run / name, run / name)
    with pytest.raises(ConfigError, match=r"step-00000012 .*another run.*--allow-change seed") as caught:
        run_train(tiny_config(small_dataset, tmp_path, train=SAVING), quiet=True)
    assert [problem.key for problem in caught.value.problems] == ["seed"]
    shutil.rmtree(run / name)
    assert run_train(tiny_config(small_dataset, tmp_path, train=SAVING), quiet=True).step == 12


def test_checkpoints_of_an_older_release_say_so(run: Path, small_dataset: Path, tmp_path: Path) -> None:
    for folder in step_folders(run):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["format_version"] = 2
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"format version 2; this release reads 4.*another name="):
        run_train(tiny_config(small_dataset, tmp_path, train=SAVING), quiet=True)


def test_the_pointer_names_what_was_resumed_from(run: Path, small_dataset: Path, tmp_path: Path) -> None:
    file_of(run / "checkpoints" / "step-00000012").unlink()
    train = {**SAVING, "time_limit_s": 1e-3, "checkpoint_every": 12}
    run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True)
    assert (run / "checkpoints" / "latest").read_text() == "step-00000009\n"
