"""MLflow: the only file that imports it. Nothing here makes a training step wait for a server.

Points go into a queue that one thread empties in batches (sender.py). What the server did not take stays in
the queue and is tried again, so a server that is away costs nothing but memory; MLflow's own asynchronous
queue drops a batch once its retries are used up. What a killed process left unsent is read from
metrics.jsonl when the run is resumed. A server that is away at that moment is connected to once it is back.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UsageError
from data_pipeline.storage import Storage
from pretrain.tracking.base import RunFacts, Say, Status, Value, flatten, run_title, without_credentials
from pretrain.tracking.jsonl import read_metrics
from pretrain.tracking.sender import AwayError, Job, LeftOutError, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_FILE = "mlflow_run.json"
DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"

CLOSE_WAIT_S = 30.0
MAX_METRICS = 1000  # MLflow's limit a request; of params and tags it takes 100
MAX_PARAMS = 100
MAX_PARAM_CHARS = 6000

Point = tuple[str, float, int, int]  # key, value, ms since 1970, step

# Answers that another attempt will not change.
HOPELESS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "PERMISSION_DENIED"}
# So that the page opens on runs and curves, not on prompts and traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
ENDED: dict[Status, str] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def user_name() -> str:
    """Who runs this, as MLflow would say it; a container may have no name for its user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _now_ms() -> int:
    return int(time.time() * 1000)


def local_uri(run: Path) -> str:
    """The address of the sqlite store in a run's folder."""
    return f"sqlite:///{(run / DATABASE_FILE).resolve()}"


def quieten() -> None:
    """Before MLflow is imported: it shall neither call home nor talk while it starts."""
    # MLflow reads these once, while it is imported; a value that the user has set wins.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for noisy in ("alembic", "mlflow.store", "mlflow.tracking", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def make_client(uri: str) -> MlflowClient:
    """An MLflow client that neither calls home nor talks while it starts."""
    quieten()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextmanager
def _named_errors() -> Iterator[None]:
    """What a call to the server raises, as what the sender makes of it."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a database that is used without a server

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = without_credentials(" ".join(str(error).split("[SQL:")[0].split()))[:300]
        if isinstance(error, MlflowException) and error.error_code in HOPELESS:
            raise LeftOutError(f"MLflow refused it: {reason}") from error
        # A lost connection is an OSError too, but only one about a file of this machine has a file's name.
        if isinstance(error, OSError) and error.filename is not None:
            raise LeftOutError(reason) from error
        raise AwayError(reason) from error


def _is_marked(found: Run, facts: RunFacts) -> bool:
    """Whether an MLflow run holds points, or parameters that are not those of the config."""
    params = found.data.params
    return bool(found.data.metrics) or any(
        params.get(key, value[:MAX_PARAM_CHARS]) != value[:MAX_PARAM_CHARS]
        for key, value in flatten(facts.config).items()
    )


class MlflowTracker:
    """One MLflow run for one run folder, continued on resume without doubled points."""

    def __init__(self, run: Path, experiment: str, uri: str | None, say: Say) -> None:
        self.run, self.experiment, self._say = run, experiment, say
        self.is_local = uri is None
        self._uri = uri or local_uri(run)
        self.address = without_credentials(self._uri)
        self.run_id = ""
        self._client: MlflowClient | None = None
        self._sender: Sender | None = None
        self._last_steps: dict[str, int] = {}

    def start(self, facts: RunFacts, resumed_at: int = 0) -> None:
        """Raises: UsageError when the server does not answer or refuses the experiment.

        A run that was begun before goes on without an answer; its points are kept until there is one.
        """

        def open_run(client: MlflowClient) -> None:
            self.run_id, self._last_steps = self._resume_or_create(facts, starts_over=resumed_at == 0)
            self._describe(facts)

        started_ms = _now_ms()  # MLflow orders points by time: those of before come first

        def unsent() -> list[Job]:
            lines = [line for line in read_metrics(self.run) if line["step"] <= resumed_at]
            jobs = (self._points(line.pop("step"), line, started_ms) for line in lines)
            return [job for job in jobs if job is not None]

        is_begun = resumed_at > 0 or (self.run / RUN_FILE).exists()
        self._connect(open_run, unsent, may_be_away=is_begun and not self.is_local)

    def reopen(self) -> Status | None:
        """Open the run as it stands, to add to it; how it ended before, or None when it has never begun here.

        Raises: UsageError when the server does not answer or does not know the run.
        """
        file = self.run / RUN_FILE
        if not file.exists():
            return None
        self.run_id = self._known_id(file)
        ended: list[str] = []
        self._connect(lambda client: ended.append(client.get_run(self.run_id).info.status))
        return next((status for status, name in ENDED.items() if name == ended[0]), "stopped")

    def _known_id(self, file: Path) -> str:
        """Raises: UsageError when mlflow_run.json is damaged."""
        try:
            return str(json.loads(file.read_text())["run_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{file} cannot be read ({error}): remove it, and the run gets a new page in MLflow when "
                f"`foreframe train` is given it again"
            ) from error

    def _connect(
        self,
        first: Callable[[MlflowClient], None],
        unsent: Callable[[], list[Job]] = list,
        *,
        may_be_away: bool = False,
    ) -> None:
        """Make the client, do the first thing with it, start the thread, which sends what is `unsent` first.

        may_be_away: a server that does not answer is left to the thread.
        """
        database = self.run / DATABASE_FILE
        is_new = self.is_local and not database.exists()
        quieten()

        def connect() -> None:
            with _named_errors():
                self._client = make_client(self._uri)
                first(self._client)
            if self._sender is not None:
                self._sender.put_first(unsent())

        away: AwayError | None = None
        try:
            connect()
        except (AwayError, LeftOutError) as error:
            away = error if may_be_away and isinstance(error, AwayError) else None
            if is_new:
                database.unlink(missing_ok=True)  # half a store would be refused for ever
            remedy = (
                f"make room on its disk; or, where {DATABASE_FILE} is damaged, remove it and {RUN_FILE}: the "
                f"next `foreframe train` of the run fills a new one; or train with tracker.kind=jsonl"
                if self.is_local
                else "start the server, name another with tracker.uri=..., leave it out (null) for mlflow.db "
                "in the run's folder, or train with tracker.kind=jsonl"
            )
            if away is None:
                raise UsageError(f"MLflow at {self.address} could not be used: {error}\n{remedy}") from error
        connect_later = None if away is None else connect
        self._sender = Sender(self._send_points, MAX_METRICS, self.address, self._say, connect_later, away)
        if away is None:
            self._sender.put_first(unsent())
        self._sender.start()

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        metrics = [
            Metric(key, value, time_ms, step, run_id=self.run_id)
            for key, value, time_ms, step in points
            if step > self._last_steps.get(key, -1)  # not known yet when the server was away at the start
        ]
        if metrics:
            with _named_errors():
                self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _points(self, step: int, values: dict[str, Value], time_ms: int) -> Job | None:
        """Those that the server does not have, as far as is known; None when it has them all."""
        points = tuple(
            (key, float(value), time_ms, step)
            for key, value in values.items()
            if isinstance(value, (int, float)) and step > self._last_steps.get(key, -1)
        )
        return Job(points, what=f"points of step {step}") if points else None

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        assert self._sender is not None, "start() comes first"
        if (job := self._points(step, values, _now_ms())) is not None:
            self._sender.put(job)

    def log_file(self, path: Path, folder: str = "") -> None:
        def send(client: MlflowClient) -> None:
            with path.open("rb"):  # MLflow may say of a missing file whatever its store says
                client.log_artifact(self.run_id, str(path), folder or None)

        self._put(send, f"the file {path.name}")

    def log_picture(self, path: Path, step: int) -> None:
        # As a file it is shown whole; as an image of a step it can be followed over the run.
        self.log_file(path, "pictures")
        if path.suffix != ".png":
            return

        def send(client: MlflowClient) -> None:
            from PIL import Image

            try:
                with Image.open(path) as picture:
                    picture.load()
            except (
                OSError,
                SyntaxError,
                ValueError,
            ) as error:  # all three are what PIL says of a damaged file
                raise LeftOutError(str(error)) from error
            client.log_image(self.run_id, picture, key=path.stem, step=step, synchronous=True)

        self._put(send, f"the picture {path.name}")

    def _put(self, send: Callable[[MlflowClient], None], what: str) -> None:
        sender = self._sender
        assert sender is not None, "start() comes first"

        def call() -> None:
            assert self._client is not None, "no job comes before the connection"
            with _named_errors():
                send(self._client)

        sender.put(Job(call=call, what=what))

    def flush(self) -> None:
        """Waits for a server that answers; one that is away is not waited for."""
        if self._sender is not None and self._sender.away_since is None:
            self._sender.drain(CLOSE_WAIT_S)

    def close(self, status: Status) -> None:
        if self._sender is None:
            return
        ended = ENDED[status]
        self._put(lambda client: client.set_terminated(self.run_id, ended), "the run's end")
        left = self._sender.drain(CLOSE_WAIT_S)
        self._sender.stop()
        self._sender.join(CLOSE_WAIT_S)
        self._sender = None
        if left:
            self._say(
                f"MLflow at {self.address} did not take the last {left} entries; every point is in "
                f"{self.run / 'metrics.jsonl'}, and is sent when this run is resumed"
            )

    def _resume_or_create(self, facts: RunFacts, starts_over: bool) -> tuple[str, dict[str, int]]:
        """The run's id on the server, and the last step that each of its curves has there.

        starts_over: no step of the run is kept. Its points will come again, perhaps from another config, and
        MLflow can take back neither points nor parameters: then what it has is ended, and a new run made.
        """
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        file = self.run / RUN_FILE
        if file.exists():
            run_id = self._known_id(file)
            try:
                found = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._say(f"MLflow at {self.address} has no run {run_id}; it gets a new one, with all points")
            else:
                if not (starts_over and _is_marked(found, facts)):
                    self._client.update_run(run_id, status="RUNNING")
                    return run_id, {metric.key: metric.step for metric in found.data.to_proto().metrics}
                if found.info.status == "RUNNING":
                    self._client.set_terminated(run_id, ENDED["stopped"])
        tags = {
            "mlflow.source.name": "foreframe train",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": facts.tags.get("commit", ""),
            "mlflow.user": user_name(),
        }
        created = self._client.create_run(
            self._experiment_id(), run_name=run_title(self.run, facts.name), tags=tags
        )
        record = {
            "run_id": created.info.run_id,
            "experiment": self.experiment,
            "experiment_id": str(created.info.experiment_id),
            "address": self.address,
        }
        Storage(self.run).publish(RUN_FILE, json.dumps(record, indent=2).encode() + b"\n")
        return created.info.run_id, {}

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            where = (self.run / ARTIFACTS_FOLDER).resolve().as_uri() if self.is_local else None
            try:
                return str(self._client.create_experiment(self.experiment, where, EXPERIMENT_TAGS))
            except MlflowException as error:
                # Another run that starts at the same moment may have made it.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self.experiment)
                assert found is not None
        if found.lifecycle_stage == "deleted":
            raise UsageError(
                f"the MLflow experiment {self.experiment!r} at {self.address} was deleted there: "
                f"restore it, or name another with tracker.experiment=..."
            )
        return str(found.experiment_id)

    def _describe(self, facts: RunFacts) -> None:
        """Tags, parameters the run does not have yet (they cannot change), the data set, the config."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        assert self._client is not None
        known = self._client.get_run(self.run_id)
        params = [
            Param(key, value[:MAX_PARAM_CHARS])
            for key, value in flatten(facts.config).items()
            if key not in known.data.params
        ]
        tags = [RunTag(key, without_credentials(value)) for key, value in facts.tags.items()]
        self._client.log_batch(self.run_id, tags=tags[:MAX_PARAMS], synchronous=True)
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + MAX_PARAMS], synchronous=True)
        has_dataset = known.inputs is not None and bool(known.inputs.dataset_inputs)
        if facts.datasets and not has_dataset:
            used_for = InputTag("mlflow.data.context", "training")
            inputs = []
            for data in facts.datasets:
                source = json.dumps({"uri": without_credentials(data.address)})
                profile = json.dumps(
                    {"num_clips": data.num_clips, "fingerprint": data.fingerprint, "weight": data.weight}
                )
                dataset = Dataset(
                    data.name, data.fingerprint, "foreframe", source, schema=None, profile=profile
                )
                inputs.append(DatasetInput(dataset, [used_for]))
            self._client.log_inputs(self.run_id, inputs)
