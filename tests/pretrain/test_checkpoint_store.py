"""Checkpoints copied to a bucket: the same ones, a resume from there alone, and a store that is away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import CheckpointError, DataError
from data_pipeline.storage import Storage
from launch.train import run_train
from pretrain.checkpoint import step_folders
from pretrain.checkpoint.store import Store
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_metrics
from tests.servers.faults import FaultProxy
from tests.small_dataset import tiny_config

SAVING = {"steps": 12, "checkpoint_every": 4, "keep_checkpoints": 2, "keep_every": 12}


def config_of(dataset: Path, out: Path, store: str | None, **train: Any) -> RunConfig:
    return tiny_config(dataset, out, train={**SAVING, "checkpoint_store": store, **train})


def curve(run: Path) -> list[tuple[int, float, str]]:
    return [(line["step"], line["loss"], line["batch_digest"]) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_train(config_of(small_dataset, tmp_path_factory.mktemp("runs"), None), quiet=True).run


def whole_in(store: str) -> list[str]:
    return sorted(name for name, listed in Store(store).listed().items() if listed.has_manifest)


def test_the_store_holds_what_the_folder_holds(
    small_dataset: Path, tmp_path: Path, s3_bucket: str, whole_run: Path
) -> None:
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    names = [folder.name for folder in step_folders(run)]
    assert whole_in(store) == sorted(names) == ["step-00000008", "step-00000012"]
    assert Store(store).newest() == "step-00000012"
    for name in names:
        for path in (run / "checkpoints" / name).iterdir():
            assert Storage(store).read(f"checkpoints/{name}/{path.name}") == path.read_bytes()
    assert curve(run) == curve(whole_run)


def test_a_run_goes_on_from_the_store_where_its_folder_is_gone_older_or_damaged(
    small_dataset: Path, tmp_path: Path, s3_bucket: str, whole_run: Path
) -> None:
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path / "a", store, keep_checkpoints=3), quiet=True).run
    Store(store).remove(["step-00000012"])  # the folder is newer than the store by that one
    for damage in ("gone", "older", "damaged"):
        out = tmp_path / damage
        copied = Path(shutil.copytree(run, out / run.name))
        (copied / "result.json").unlink()
        shutil.rmtree(copied / "checkpoints" / "step-00000012")
        if damage == "gone":
            shutil.rmtree(copied / "checkpoints")
        elif damage == "older":
            shutil.rmtree(copied / "checkpoints" / "step-00000008")
        else:
            next((copied / "checkpoints" / "step-00000008").glob("*.safetensors")).write_bytes(b"x")
        assert run_train(config_of(small_dataset, out, store), quiet=True).step == 12
        assert curve(copied) == curve(whole_run), damage
        Store(store).remove(["step-00000012"])


# Requests that are refused are not tried again; others are, for half a minute.
AWAY = pytest.mark.parametrize("fault", ["403", pytest.param("503", marks=pytest.mark.slow)])


@AWAY
def test_a_store_that_is_away_holds_nothing_up_and_is_brought_up_to_date(
    small_dataset: Path,
    tmp_path: Path,
    faulty_bucket: str,
    faults: FaultProxy,
    whole_run: Path,
    fault: str,
) -> None:
    store = f"{faulty_bucket}/tiny"
    config = config_of(small_dataset, tmp_path, store)
    assert run_train(
        config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})}), quiet=True
    )
    assert whole_in(store) == ["step-00000004"]
    faults.inject(fault, "*", "*", times=None)
    run = run_train(config, quiet=True).run
    assert curve(run) == curve(whole_run)
    faults.heal()
    assert whole_in(store) == ["step-00000004"]
    more = config.model_copy(update={"train": config.train.model_copy(update={"steps": 13})})
    run_train(more, quiet=True)
    assert whole_in(store) == ["step-00000012", "step-00000013"]


@AWAY
def test_a_run_whose_folder_is_gone_does_not_begin_anew_while_its_store_is_away(
    small_dataset: Path, tmp_path: Path, faulty_bucket: str, faults: FaultProxy, fault: str
) -> None:
    store = f"{faulty_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    shutil.rmtree(run)
    faults.inject(fault, "*", "*", times=None)
    with pytest.raises(DataError):
        run_train(config_of(small_dataset, tmp_path, store), quiet=True)
    faults.heal()
    shutil.rmtree(run, ignore_errors=True)
    name = "checkpoints/step-00000012"
    files = [entry.name for entry in Storage(store).walk(name) if entry.name.endswith("safetensors")]
    for name in [*files, *(file.replace("12/", "08/") for file in files)]:
        Storage(store).remove(name)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: .*is missing"):
        run_train(config_of(small_dataset, tmp_path, store), quiet=True)
