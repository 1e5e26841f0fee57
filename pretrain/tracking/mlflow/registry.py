"""An exported encoder in MLflow's model registry: the folder as it is, its card, where it is from.

Never in the training loop: the whole folder is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UsageError
from pretrain.config import TrackerConfig
from pretrain.tracking.base import without_credentials
from pretrain.tracking.mlflow.client import local_uri, make_client, named_errors, now_ms
from pretrain.tracking.mlflow.page import MAX_PARAM_CHARS
from pretrain.tracking.mlflow.runs import RUN_FILE, read_record
from pretrain.tracking.sender import AwayError, LeftOutError

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.S)
NAME = re.compile(r"[^/:\"'\s][^/:\"']*")


@dataclass(frozen=True)
class ModelFacts:
    """What is registered. facts: of the weights (step, fingerprint of the data). scores: of its probe."""

    name: str
    folder: Path
    step: int
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """uri: by which MLflow finds it. address: of the registry, without credentials."""

    uri: str
    version: int
    address: str


def check_name(name: str) -> None:
    """Raises: UsageError when MLflow would take no model of that name."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--register is {name!r}: need a name without / : and quotes, such as vitl16-howto")


def check_run(run: Path) -> None:
    """Raises: UsageError when a run was not tracked by MLflow, so has no page that a model could be of."""
    if read_record(run) is None:
        raise UsageError(
            f"{run} has no {RUN_FILE}: it was not tracked by MLflow, where the model would be registered; "
            f"export it without --register"
        )


def register(config: TrackerConfig, run: Path, model: ModelFacts) -> Registered:
    """Make a version of a registered model of an exported folder, linked to its run; there may be none yet.

    Raises: UsageError when the name cannot be used, the run was not tracked by MLflow, or the server does not
    answer.
    """
    check_name(model.name)
    check_run(run)
    uri = config.uri or local_uri(run)
    address = without_credentials(uri)
    try:
        with named_errors():
            version = _register(uri, run, model)
    except (AwayError, LeftOutError) as error:
        raise UsageError(
            f"{model.folder} was written, and could not be registered at {address}: {error}; "
            f"the same command with --force tries again"
        ) from error
    return Registered(f"models:/{model.name}/{version}", version, address)


def _register(uri: str, run: Path, model: ModelFacts) -> int:
    from mlflow.exceptions import MlflowException

    record = read_record(run)
    assert record is not None
    client, run_id = make_client(uri), str(record["run_id"])
    card = FRONT_MATTER.sub("", (model.folder / CARD).read_text(encoding="utf-8"))
    tags = {key: without_credentials(value)[:MAX_PARAM_CHARS] for key, value in model.facts.items()}
    tags |= {key: f"{score:.4g}" for key, score in model.scores.items()}
    experiment = client.get_run(run_id).info.experiment_id
    # The folder is the model's own artifacts: seen from the run, the experiment and the registry.
    logged = client.create_logged_model(
        experiment, f"encoder-step-{model.step}", run_id, tags, dict(model.facts), "foreframe"
    )
    client.log_model_artifacts(logged.model_id, str(model.folder))
    client.finalize_logged_model(logged.model_id, "READY")
    for key, score in model.scores.items():
        client.log_metric(run_id, key, score, now_ms(), model.step, model_id=logged.model_id)
    try:
        client.create_registered_model(model.name, description=card)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        model.name, logged.artifact_location, run_id, tags, description=card, model_id=logged.model_id
    )
    return int(version.version)
