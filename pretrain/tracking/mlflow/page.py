"""What the page of an MLflow run shows: metrics by group, parameters, tags, data sets, a description.

Parameters are few: the settings by which runs are told apart (facts.params). All settings lie in config.yaml
among the artifacts; a hundred and fifty columns that are equal everywhere make a comparison unreadable. What
may change on resume is a tag, as MLflow lets no parameter change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.tracking.base import DatasetFacts, RunFacts, Value, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

MAX_PARAMS = 100  # and of tags: MLflow's limit a request
MAX_PARAM_CHARS = 6000
TIMES, PAUSE_S = 6, 0.1
NOT_UNIQUE = ("unique", "duplicate")  # what databases say of a row that somebody else has just written
NOTE = "mlflow.note.content"
VERDICT = ("verdict", "verdict_reason")  # text of a step that stands as a tag

# MLflow makes a section of charts of each prefix; these have none, or one that is no section of its own.
GROUPED = {"loss": "loss/total", "time_s": "perf/time_s", "checkpoint/failed": "perf/failed_saves"}


def grouped(key: str) -> str:
    """A key of metrics.jsonl as MLflow's charts have it: loss/ health/ optim/ data/ perf/ probe/ system/.

    >>> grouped("loss"), grouped("loss/masks-1"), grouped("time_s")
    ('loss/total', 'loss/masks-1', 'perf/time_s')
    """
    return GROUPED.get(key, key)


def numbers(values: dict[str, Value]) -> dict[str, float]:
    """What can be a point of a curve, by its key in MLflow."""
    return {grouped(key): float(value) for key, value in values.items() if isinstance(value, (int, float))}


def shortened(params: dict[str, str]) -> dict[str, str]:
    return {key: without_credentials(value)[:MAX_PARAM_CHARS] for key, value in params.items()}


def describe(client: MlflowClient, run_id: str, facts: RunFacts, resumed_at: int) -> None:
    """Tags, parameters that the run does not have yet, data sets, and a description where nobody wrote one.

    A parameter that has changed (`--allow-change`) keeps its first value; a tag says what it is now.
    `attempt` counts how often the run was started or resumed.
    """
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id)
    wanted, has = shortened(facts.params), known.data.params
    tags = {key: without_credentials(value) for key, value in facts.tags.items()}
    tags["attempt"] = str(1 + int(known.data.tags.get("attempt", "0")))
    for key, value in wanted.items():
        if key in has and has[key] != value:
            tags[f"changed.{key}"] = f"{has[key]} → {value} at step {resumed_at}"
    if facts.description and NOTE not in known.data.tags:
        tags[NOTE] = facts.description
    pairs = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run_id, tags=pairs[:MAX_PARAMS], synchronous=True)
    params = [Param(key, value) for key, value in wanted.items() if key not in has]
    for start in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + MAX_PARAMS], synchronous=True)
    has_dataset = known.inputs is not None and bool(known.inputs.dataset_inputs)
    if facts.datasets and not has_dataset:
        log_datasets(client, run_id, facts.datasets)


def log_datasets(client: MlflowClient, run_id: str, datasets: Sequence[DatasetFacts]) -> None:
    """Note what a run reads; again where another run, that starts too, has just noted the same data set."""
    from mlflow.exceptions import MlflowException

    for attempt in range(TIMES):
        try:
            client.log_inputs(run_id, dataset_inputs(datasets))
            return
        except MlflowException as error:
            if attempt == TIMES - 1 or not any(word in str(error).lower() for word in NOT_UNIQUE):
                raise
            time.sleep(PAUSE_S * (1 + attempt))


def dataset_inputs(datasets: Sequence[DatasetFacts]) -> list[DatasetInput]:
    """Data sets as MLflow lists them, with the fingerprint as digest and what they are used for."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for data in datasets:
        source = json.dumps({"uri": without_credentials(data.address)})
        profile = json.dumps(
            {"num_clips": data.num_clips, "fingerprint": data.fingerprint, "weight": data.weight}
        )
        dataset = Dataset(data.name, data.fingerprint[:36], "foreframe", source, schema=None, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)]))
    return inputs
