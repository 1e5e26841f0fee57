"""A run's page in its tracker says what it is: which settings, which data, how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.environment import hardware, installed
from launch.results import finding_of
from launch.run_facts import ALWAYS, default_experiment, params_of, probe_dataset, run_facts
from pretrain.config import RunConfig
from pretrain.tracking.base import DatasetFacts
from tests.small_dataset import tiny_config

DATA = DatasetFacts("howto-v1", "s3://bucket/howto", "f00d", 160)
PROVENANCE = {
    "commit": "abc123",
    "patch": None,
    "host": "vm",
    "device": "CPU",
    "world_size": 2,
    "versions": {"torch": "2.13.0", "numpy": "2.4"},
}


def facts_of(config: RunConfig, **provenance: Any) -> Any:
    return run_facts(config, Path("runs/tiny"), [DATA], PROVENANCE | provenance)


def test_parameters_are_those_by_which_runs_are_told_apart(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    params = params_of(config)
    assert set(ALWAYS) <= set(params)
    assert params["optim.lr"] == "0.001"
    assert params["model.encoder.width"] == "48", "it differs from the default"
    assert "objective.masks" not in params, "as by default"
    assert not any(
        key.startswith(("tracker", "health", "train.checkpoint", "data.workers")) for key in params
    )
    assert len(params) < 40
    masks = {"kind": "masked_latent", "masks": [{"blocks": 4, "spatial_scale": 0.3}]}
    changed = params_of(tiny_config(tmp_path, tmp_path, objective=masks))
    assert {key for key in changed if changed[key] != params.get(key)} == {"objective.masks"}
    assert changed["objective.masks"] == "blocks 4, spatial_scale 0.3"


@pytest.mark.parametrize("kind", ["masked_latent", "future_latent", "pixel", "contrastive"])
def test_every_objective_can_be_described(tmp_path: Path, kind: str) -> None:
    target = {"kind": "online"} if kind == "pixel" else {}
    facts = facts_of(tiny_config(tmp_path, tmp_path, objective={"kind": kind}, target=target))
    assert facts.experiment == f"{kind} on howto-v1"
    assert f"`{kind}`" in facts.description


def test_names_say_what_a_run_is(tmp_path: Path) -> None:
    facts = facts_of(tiny_config(tmp_path, tmp_path))
    assert (facts.name, facts.experiment) == ("tiny", "masked_latent on howto-v1")
    assert f"foreframe train {Path('runs/tiny').absolute()}" in facts.description
    assert "20 steps of 4 clips" in facts.description
    assert facts.params["data"] == "howto-v1"
    assert facts.tags["torch"] == "2.13.0"
    named = tiny_config(
        tmp_path, tmp_path, seed=3, tracker={"kind": "mlflow", "experiment": "mine", "group": "sweep"}
    )
    facts = facts_of(named, patch="--- a")
    assert (facts.name, facts.experiment, facts.group) == ("tiny, seed 3", "mine", "sweep")
    assert facts.tags["patch"] == "yes, in code.patch"
    two = [DATA, DatasetFacts("web", "x", "beef", 4), DatasetFacts("kept", "y", "b0", 4, context="probe")]
    assert default_experiment(named, two[:2]) == "masked_latent on howto-v1 + web"
    assert run_facts(named, tmp_path, two, PROVENANCE).params["data"] == "howto-v1 + web"


def test_the_data_set_of_probes_is_listed_where_it_is_another(small_dataset: Path, tmp_path: Path) -> None:
    assert probe_dataset(tiny_config(small_dataset, tmp_path)) == ()
    (found,) = probe_dataset(tiny_config(small_dataset, tmp_path, probe={"data": str(small_dataset)}))
    assert (found.name, found.num_clips, found.context) == ("small", 28, "probe")
    assert probe_dataset(tiny_config(small_dataset, tmp_path, probe={"data": str(tmp_path / "no")})) == ()


def test_a_probing_says_how_and_on_what() -> None:
    found = {
        "kind": "states",
        "step": 40,
        "num_train_clips": 160,
        "num_eval_clips": 90,
        "data": "demo",
        "data_fingerprint": "f00d",
        "how": "ridge regression",
    }
    finding = finding_of(found, {"probe/trained/position": 0.5}, "data/demo")
    assert finding.name == "probe at step 40"
    assert finding.params["num_eval_clips"] == "90"
    assert (finding.datasets[0].num_clips, finding.datasets[0].context) == (250, "probe")
    assert finding.description == "ridge regression"


def test_the_environment_names_packages_and_machine_without_addresses() -> None:
    lines = installed().splitlines()
    assert any(line.startswith("torch==") for line in lines)
    assert not any("/" in line or "@" in line for line in lines), "where it was installed from stays out"
    found = hardware()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 28


def test_a_run_that_was_given_a_name_is_called_so(tmp_path: Path) -> None:
    facts = facts_of(tiny_config(tmp_path, tmp_path, seed=3, tracker={"run_name": "latent, seed 3"}))
    assert facts.name == "latent, seed 3"
