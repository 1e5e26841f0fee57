"""An exported encoder in MLflow's registry: found by its name, with its card, and loaded back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UsageError
from launch.train import run_train
from launch.ui import find_database, page_of, server_command
from launch.weights import register_weights, run_export
from pretrain.features import Encoder
from pretrain.tracking.mlflow import make_client
from tests.small_dataset import tiny_config

STEPS = {"steps": 2, "checkpoint_every": 2}


@pytest.fixture
def run(small_dataset: Path, tmp_path: Path, shared_store: str) -> Path:
    tracker = {"kind": "mlflow", "uri": shared_store, "group": "tries"}
    return run_train(
        tiny_config(small_dataset, tmp_path / "runs", train=STEPS, tracker=tracker), quiet=True
    ).run


def test_a_registered_encoder_is_found_by_name_and_gives_the_same_features(
    run: Path, tmp_path: Path, shared_store: str
) -> None:
    import mlflow

    (run / "probes.jsonl").write_text('{"step": 2, "scores": {"position": 0.75, "shape": null}}\n')
    weights = run_export(
        run,
        tmp_path / "out",
        "foreframe",
        step=None,
        of=None,
        allow_partial=False,
        force=False,
        register="enc",
    )
    found = register_weights(run, tmp_path / "out", "enc", weights)
    again = register_weights(run, tmp_path / "out", "enc", weights)
    assert (found.uri, again.uri) == ("models:/enc/1", "models:/enc/2")
    client = make_client(shared_store)
    version = client.get_model_version("enc", "1")
    record = json.loads((run / "mlflow_run.json").read_text())
    assert version.run_id == record["run_id"]
    assert version.description.startswith("# tiny: a video encoder of 2 blocks")
    assert version.tags["step"] == "2"
    assert len(version.tags["data_fingerprint"]) > 8
    assert version.tags["probe/trained/position"] == "0.75"
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(shared_store)
        folder = mlflow.artifacts.download_artifacts("models:/enc/1", dst_path=str(tmp_path / "back"))
    finally:
        mlflow.set_tracking_uri(before)
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 8, 32, 32, 3), np.uint8))
    assert torch.equal(Encoder.from_pretrained(folder)(clips), Encoder.from_pretrained(run)(clips))


def test_what_cannot_be_registered_is_told_before_anything_is_written(
    run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    alone = run_train(tiny_config(small_dataset, tmp_path / "alone", train=STEPS), quiet=True).run

    def export(source: Path, name: str) -> None:
        run_export(
            source,
            tmp_path / "out",
            "foreframe",
            step=None,
            of=None,
            allow_partial=False,
            force=False,
            register=name,
        )

    with pytest.raises(UsageError, match="without / : and quotes"):
        export(run, "ann/enc")
    with pytest.raises(UsageError, match="not tracked by MLflow"):
        export(alone, "enc")
    with pytest.raises(UsageError, match="no run's folder"):
        export(tmp_path, "enc")
    assert not (tmp_path / "out").exists()


def test_runs_that_share_a_store_are_seen_in_it(run: Path, tmp_path: Path, shared_store: str) -> None:
    """Artifacts lie beside the store, `foreframe ui` opens it."""
    database = find_database(run)
    assert f"sqlite:///{database}" == shared_store
    assert (database.parent / "mlartifacts").is_dir()
    command = server_command(database, "127.0.0.1", 5001)
    assert command[command.index("--backend-store-uri") + 1] == shared_store
    record = json.loads((run / "mlflow_run.json").read_text())
    assert record["run_id"] in page_of(run)
    client = make_client(shared_store)
    found = client.get_run(record["run_id"])
    assert client.get_experiment(record["experiment_id"]).name == "masked_latent on small"
    assert "config.yaml" in [file.path for file in client.list_artifacts(record["run_id"])]
    assert client.get_run(found.data.tags["mlflow.parentRunId"]).info.run_name == "tries"
