"""Checkpoints copied to a bucket: the same ones, a resume from there alone, and a store that is away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import CheckpointError, ConfigError, DataError, StorageError
from data_pipeline.storage import Storage
from launch.train import run_train
from pretrain.checkpoint import step_folders
from pretrain.checkpoint.manifest import sealed
from pretrain.checkpoint.retention import Retention
from pretrain.checkpoint.sending import Sending
from pretrain.checkpoint.store import Store
from pretrain.config import RunConfig
from pretrain.strategy.base import World
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


def test_a_checkpoint_that_was_never_sent_is_sent_by_the_next_start(
    small_dataset: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that has ended: what it says of itself stays."""
    store = f"{s3_bucket}/tiny"
    config = config_of(small_dataset, tmp_path, store)

    def away(*_: object) -> None:
        raise StorageError("away")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "send", away)
        first = run_train(config, quiet=True)
    assert whole_in(store) == []
    again = run_train(config, quiet=True)
    assert whole_in(store) == ["step-00000008", "step-00000012"]
    assert Store(store).newest() == "step-00000012"
    assert (again.is_new, again.loss, again.step) == (False, first.loss, 12)
    assert json.loads((first.run / "result.json").read_bytes())["loss"] == first.loss

    Store(store).remove(["step-00000012"])
    (first.run / "result.json").unlink()
    run_train(config, quiet=True)
    assert whole_in(store) == ["step-00000008", "step-00000012"]


def test_a_damaged_checkpoint_in_the_store_goes_and_the_whole_one_stays(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    """keep 1, step 12 damaged there, the folder gone: resumed from 8, stopped after 9; 9 is what stays."""
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    shutil.rmtree(run)
    files = [entry.name for entry in Storage(store).walk("checkpoints/step-00000012")]
    Storage(store).publish(next(file for file in files if file.endswith("safetensors")), b"damaged")
    stopped = config_of(
        small_dataset, tmp_path, store, keep_checkpoints=1, keep_every=None, time_limit_s=1e-3
    )
    assert run_train(stopped, quiet=True).step == 9
    assert whole_in(store) == ["step-00000009"]
    assert Store(store).newest() == "step-00000009"
    shutil.rmtree(run)
    assert run_train(config_of(small_dataset, tmp_path, store), quiet=True).step == 12
    assert [line["step"] for line in read_metrics(run)] == [10, 11, 12], "from 9 on"


def test_later_checkpoints_that_could_not_be_judged_stay_in_the_store(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    """The folder was resumed while the store was away: what is later there is not what was published now."""
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    for name in ("step-00000012", "step-00000008"):
        shutil.rmtree(run / "checkpoints" / name)
    (run / "result.json").unlink()
    alone = {"keep_checkpoints": 1, "keep_every": None, "time_limit_s": 1e-3}
    run_train(config_of(small_dataset, tmp_path, None, **alone), quiet=True)
    sending = Sending(run, World(0, 1, torch.device("cpu")), store, Retention(1), print)
    sending.begin("step-00000001", ())
    sending.finish()
    assert whole_in(store) == ["step-00000001", "step-00000008", "step-00000012"]
    assert Store(store).newest() == "step-00000001"


def test_a_manifest_damaged_here_is_replaced_by_the_stores(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    for text in ("{", None):
        manifest = run / "checkpoints" / "step-00000012" / "manifest.json"
        before = manifest.read_bytes()
        manifest.write_text(
            before.decode().replace('"samples": 48', '"samples": 49') if text is None else text
        )
        (run / "result.json").unlink()
        run_train(config_of(small_dataset, tmp_path, store), quiet=True)
        assert manifest.read_bytes() == before


def test_the_stores_own_of_a_step_is_taken_where_the_one_here_cannot_be_mended(
    small_dataset: Path, tmp_path: Path, s3_bucket: str, whole_run: Path
) -> None:
    """Two starts made step 12, and wrote other bytes: the one here is damaged, the store's is whole."""
    store = f"{s3_bucket}/tiny"
    run = run_train(config_of(small_dataset, tmp_path, store), quiet=True).run
    folder = run / "checkpoints" / "step-00000012"
    stored = (folder / "manifest.json").read_bytes()
    manifest = json.loads(stored)
    for facts in manifest["files"].values():
        facts["sha256"] = "0" * 64
    (folder / "manifest.json").write_bytes(sealed(manifest))
    (run / "result.json").unlink()
    assert run_train(config_of(small_dataset, tmp_path, store), quiet=True).step == 12
    assert (folder / "manifest.json").read_bytes() == stored
    assert whole_in(store) == ["step-00000008", "step-00000012"]
    assert curve(run) == curve(whole_run)


def test_another_science_is_refused_where_only_the_store_has_the_run(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    store = f"{s3_bucket}/tiny"
    endless = {"schedule_steps": 100}
    first = config_of(small_dataset, tmp_path, store, steps=8)
    first = first.model_copy(update={"optim": first.optim.model_copy(update=endless)})
    run = run_train(first, quiet=True).run
    shutil.rmtree(run)
    optim = first.optim.model_copy(update={"lr": 5e-2})
    train = first.train.model_copy(update={"steps": 12})
    other = first.model_copy(update={"seed": 7, "optim": optim, "train": train})
    with pytest.raises(ConfigError, match=r"step-00000008 .*another run") as caught:
        run_train(other, quiet=True)
    assert {problem.key for problem in caught.value.problems} == {"seed", "optim.lr"}
    assert step_folders(run) == [], "nothing of it was fetched"
    with pytest.raises(ConfigError):
        run_train(other, quiet=True, allow_change=("seed",))
    assert run_train(other, quiet=True, allow_change=("seed", "optim.lr")).step == 12


def test_a_run_that_only_the_store_has_needs_no_init_weights(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    store = f"{s3_bucket}/tiny"
    begun_from = run_train(tiny_config(small_dataset, tmp_path / "begun", train={"steps": 2}), quiet=True).run
    plain = config_of(small_dataset, tmp_path, store)
    config = plain.model_copy(update={"init": plain.init.model_copy(update={"weights": str(begun_from)})})
    stopped = config.train.model_copy(update={"time_limit_s": 1e-3})
    run = run_train(config.model_copy(update={"train": stopped}), quiet=True).run
    shutil.rmtree(run)
    shutil.rmtree(begun_from)
    assert run_train(config, quiet=True).step == 12
    assert next(line["step"] for line in read_metrics(run)) == 2
