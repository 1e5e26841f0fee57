"""What was found out about a run (a probing, say) as an MLflow run of its own below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.tracking.base import Finding, without_credentials
from pretrain.tracking.mlflow.client import now_ms, user_name
from pretrain.tracking.mlflow.page import MAX_PARAMS, NOTE, log_datasets, shortened
from pretrain.tracking.mlflow.runs import PARENT

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass
class Begun:
    """The run that a finding has got, kept so that another attempt makes no second."""

    run_id: str = ""


def log_finding(client: MlflowClient, parent: str, finding: Finding, step: int, begun: Begun) -> None:
    """Write a finding into a run below `parent`, which is over at once.

    begun: holds its id afterwards, and from an earlier attempt that a server's absence ended.
    """
    from mlflow.entities import Metric, Param

    above = client.get_run(parent)
    if not begun.run_id:
        tags = {
            PARENT: parent,
            "mlflow.source.name": "foreframe probe",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": user_name(),
            NOTE: finding.description,
        }
        created = client.create_run(above.info.experiment_id, run_name=finding.name, tags=tags)
        begun.run_id = created.info.run_id
    run_id, time_ms = begun.run_id, now_ms()
    params = [Param(key, value) for key, value in shortened(finding.params).items()]
    client.log_batch(run_id, params=params[:MAX_PARAMS], synchronous=True)
    points = [Metric(key, value, time_ms, step, run_id=run_id) for key, value in finding.scores.items()]
    client.log_batch(run_id, metrics=points, synchronous=True)
    if finding.datasets:
        log_datasets(client, run_id, finding.datasets)
    client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, "of_run", without_credentials(above.info.run_name or parent))
