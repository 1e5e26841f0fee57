"""Which MLflow run a run's folder has: found, begun, ended at a rollback, and the one it lies below."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from data_pipeline.storage import Storage, read_regular
from pretrain.tracking.base import RunFacts, Say, run_title
from pretrain.tracking.mlflow.client import now_ms, user_name
from pretrain.tracking.mlflow.page import NOTE, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_FILE = "mlflow_run.json"
PARENT = "mlflow.parentRunId"
GROUP_ID = "foreframe.group_id"  # of the run that others lie below; the name itself may hold quotes
GOES_ON_FROM, GOES_ON_IN, ROLLED_BACK = (
    "foreframe.goes_on_from",
    "foreframe.goes_on_in",
    "foreframe.rolled_back",
)
SETTLE_S = 0.5  # in which all that look for a group at the same moment have made theirs
# So that the page opens on runs and curves, not on prompts and traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True)
class Rollback:
    """That a run went back: from which step to which, why, and when (ms since 1970; it tells two apart)."""

    at_step: int
    to_step: int
    note: str
    time_ms: int

    @property
    def in_words(self) -> str:
        return f"at step {self.at_step} to {self.to_step}"


@dataclass(frozen=True)
class Place:
    """Where the runs of a folder are tracked. address: without credentials, for sentences.

    artifacts: of a new experiment; None where the server knows. is_local: in the run's folder itself.
    """

    run: Path
    address: str
    artifacts: str | None
    is_local: bool


def read_record(run: Path) -> dict[str, Any] | None:
    """What mlflow_run.json says, None where there is none. Raises: UsageError when it is damaged."""
    file = run / RUN_FILE
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(read_regular(file))
        str(found["run_id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): remove it, and the run gets a new page in MLflow when "
            f"`foreframe train` is given it again"
        ) from error
    return found


def write_record(run: Path, record: dict[str, Any]) -> None:
    Storage(run).publish(RUN_FILE, json.dumps(record, indent=2).encode() + b"\n")


def note_rollback(run: Path, rollback: Rollback) -> None:
    """Write down what MLflow has still to be told, in case that this process ends before it could be."""
    if (record := read_record(run)) is not None:
        to_do = [*record.get("rollbacks_to_tell", []), asdict(rollback)]
        number = record.get("rollbacks", 0) + 1
        write_record(run, {**record, "rollbacks": number, "rollbacks_to_tell": to_do})


def note_missed_rollbacks(run: Path, facts: RunFacts) -> None:
    """Write down those that an earlier process took and was killed before it came to tell."""
    known = (read_record(run) or {}).get("rollbacks", 0)
    for number, (at_step, to_step, why) in enumerate(facts.rollbacks[known:]):
        note_rollback(run, Rollback(at_step, to_step, why, now_ms() + number))


def untold_rollbacks(run: Path) -> list[Rollback]:
    """Those that an earlier process noted and could not tell."""
    return [Rollback(**each) for each in (read_record(run) or {}).get("rollbacks_to_tell", [])]


def find_or_create(
    client: MlflowClient, place: Place, facts: RunFacts, say: Say, *, starts_over: bool
) -> tuple[str, dict[str, int]]:
    """The run's id on the server, and the last step that each of its curves has there.

    starts_over: no step of the run is kept. Its points will come again, perhaps from another config, and
    MLflow can take back neither points nor parameters: then what it has is ended, and a new run made.
    """
    from mlflow.exceptions import MlflowException

    record = read_record(place.run)
    if record is not None:
        run_id = str(record["run_id"])
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            say(f"MLflow at {place.address} has no run {run_id}; it gets a new one, with all points")
        else:
            if not (starts_over and _is_marked(found, facts)):
                client.update_run(run_id, status="RUNNING")
                return run_id, last_steps(found)
            if found.info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")
    return create(client, place, facts, {}), {}


def last_steps(found: Run) -> dict[str, int]:
    return {metric.key: metric.step for metric in found.data.to_proto().metrics}


def _is_marked(found: Run, facts: RunFacts) -> bool:
    """Whether an MLflow run holds points, or parameters that are not those of the config."""
    params = found.data.params
    return bool(found.data.metrics) or any(
        params.get(key, value) != value for key, value in shortened(facts.params).items()
    )


def create(client: MlflowClient, place: Place, facts: RunFacts, tags: dict[str, str]) -> str:
    """A new MLflow run, which the run's folder has from now on; its id."""
    experiment = experiment_id(client, place, facts.experiment)
    all_tags = {
        "mlflow.source.name": "foreframe train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": facts.tags.get("commit", ""),
        "mlflow.user": user_name(),
        **tags,
    }
    if facts.group is not None:
        all_tags |= {PARENT: group_parent(client, experiment, facts.group), "group": facts.group}
    created = client.create_run(experiment, run_name=run_title(place.run, facts.name), tags=all_tags)
    _take_over(place, facts, created)
    return str(created.info.run_id)


def _take_over(place: Place, facts: RunFacts, found: Run) -> None:
    """The run's folder has this MLflow run from now on."""
    try:
        known = (read_record(place.run) or {}).get("rollbacks", 0)
    except UsageError:  # it is written anew here, and said where the run is told of it
        known = len(facts.rollbacks)
    record = {
        "run_id": found.info.run_id,
        "experiment": facts.experiment,
        "experiment_id": str(found.info.experiment_id),
        "address": place.address,
        "rollbacks": known,
    }
    write_record(place.run, record)


def experiment_id(client: MlflowClient, place: Place, name: str) -> str:
    """The experiment of that name, made where there is none. Raises: UsageError when it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, place.artifacts, EXPERIMENT_TAGS))
        except MlflowException as error:
            # Another run that starts at the same moment may have made it.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage == "deleted":
        raise UsageError(
            f"the MLflow experiment {name!r} at {place.address} was deleted there: "
            f"restore it, or name another with tracker.experiment=..."
        )
    return str(found.experiment_id)


def group_parent(client: MlflowClient, experiment: str, group: str) -> str:
    """The run that those of a group lie below, made where there is none; its id.

    MLflow has no names that are unique among runs, so of those that start at the same moment each may make
    one. Each then waits until all are there, and takes the oldest; the others remove their own.
    """
    if (found := _parents(client, experiment, group)) != []:
        return found[0]
    tags = {
        GROUP_ID: _id_of(group),
        "mlflow.source.name": "foreframe train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
        NOTE: f"The runs of the group `{group}` (`tracker.group`) lie below this one, which has no curves.",
    }
    mine = str(client.create_run(experiment, run_name=group, tags=tags).info.run_id)
    client.set_terminated(mine, "FINISHED")
    time.sleep(SETTLE_S)
    first = _parents(client, experiment, group)[0]
    if first != mine:
        client.delete_run(mine)
    return first


def _parents(client: MlflowClient, experiment: str, group: str) -> list[str]:
    found = client.search_runs([experiment], f"tags.`{GROUP_ID}` = '{_id_of(group)}'", max_results=100)
    oldest_first = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    return [str(run.info.run_id) for run in oldest_first]


def _id_of(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:16]


def go_on_anew(client: MlflowClient, place: Place, facts: RunFacts, old_id: str, rollback: Rollback) -> str:
    """End an MLflow run where training was rolled back, and begin the one that goes on; its id.

    Done again after a server was away in between, it finds the new one.
    """
    old = client.get_run(old_id)
    key = f"{old_id} {rollback.time_ms}"
    found = client.search_runs([old.info.experiment_id], f"tags.`{GOES_ON_FROM}` = '{key}'")
    if found:
        new_id = str(found[0].info.run_id)
        _take_over(place, facts, found[0])
    else:
        told = f"rolled back {rollback.in_words}: {rollback.note}"
        link = f"[what was left behind](#/experiments/{old.info.experiment_id}/runs/{old_id})"
        new_id = create(
            client,
            place,
            facts,
            {
                GOES_ON_FROM: key,
                "rollback": told,
                NOTE: f"**Rolled back {rollback.in_words}**: {rollback.note}; {link}.\n\n{facts.description}",
            },
        )
    link = f"[the run that goes on](#/experiments/{old.info.experiment_id}/runs/{new_id})"
    note = f"**Rolled back {rollback.in_words}**: {rollback.note}. What is here after step "
    note += f"{rollback.to_step} was left behind by {link}."
    client.set_tag(old_id, ROLLED_BACK, rollback.in_words)
    client.set_tag(old_id, GOES_ON_IN, new_id)
    client.set_tag(old_id, NOTE, note)
    name = f"{run_title(place.run, facts.name)} (rolled back at step {rollback.at_step})"
    client.update_run(old_id, name=name)
    client.set_terminated(old_id, "KILLED")
    return new_id
