"""The tracker of one run on an MLflow server. Nothing here makes a training step wait for it.

Points go into a queue that one thread empties in batches (sender.py). What the server did not take stays in
the queue and is tried again, so a server that is away costs nothing but memory; MLflow's own asynchronous
queue drops a batch once its retries are used up. What a killed process left unsent is read from
metrics.jsonl when the run is resumed. A server that is away at that moment is connected to once it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import ForeframeError, UsageError
from pretrain.tracking.base import (
    FLUSH_S,
    Finding,
    RunFacts,
    Say,
    Status,
    Value,
    without_credentials,
    without_secrets,
)
from pretrain.tracking.jsonl import read_metrics
from pretrain.tracking.mlflow import client as connections
from pretrain.tracking.mlflow.client import (
    DATABASE_FILE,
    artifacts_beside,
    local_uri,
    named_errors,
    now_ms,
    quieten,
)
from pretrain.tracking.mlflow.findings import Begun, log_finding
from pretrain.tracking.mlflow.images import Shown, log_image, shown_images
from pretrain.tracking.mlflow.page import VERDICT, describe, numbers
from pretrain.tracking.mlflow.runs import (
    PARENT,
    RUN_FILE,
    Place,
    Rollback,
    find_or_create,
    go_on_anew,
    note_missed_rollbacks,
    note_rollback,
    read_record,
    untold_rollbacks,
)
from pretrain.tracking.pictures import step_pictures
from pretrain.tracking.sender import AwayError, Job, LeftOutError, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

CLOSE_WAIT_S = 30.0
MAX_METRICS = 1000  # MLflow's limit a request
TEXT = {".yaml", ".json", ".txt", ".patch", ".md"}  # files in which no secret may stand
Point = tuple[str, float, int, int]  # key, value, ms since 1970, step
ENDED: dict[Status, str] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """One MLflow run for one run folder, continued on resume without doubled points."""

    def __init__(self, run: Path, uri: str | None, say: Say) -> None:
        self.run, self._say = run, say
        self._uri = uri or local_uri(run)
        address = without_credentials(self._uri)
        self.place = Place(run, address, artifacts_beside(self._uri), is_local=uri is None)
        self.run_id = ""
        self._facts = RunFacts("")
        self._client: MlflowClient | None = None
        self._sender: Sender | None = None
        self._last_steps: dict[str, int] = {}  # what the server has, by the sender's thread alone
        self._shown: Shown = set()  # pictures that the server has, by the sender's thread alone
        self._newest_step = 0
        self._ended_ms: int | None = None  # of a run that is added to: it ended then
        self._files: dict[tuple[Path, str], None] = {}  # in the order in which they were logged
        self._verdict: list[Value | None] = []

    @property
    def address(self) -> str:
        return self.place.address

    def start(self, facts: RunFacts, resumed_at: int = 0) -> None:
        """Raises: UsageError when the server does not answer or refuses the experiment.

        A run that was begun before goes on without an answer; its points are kept until there is one.
        """
        self._facts, self._newest_step = facts, resumed_at
        if resumed_at:
            note_missed_rollbacks(self.run, facts)
        untold = untold_rollbacks(self.run)

        def open_run(client: MlflowClient) -> None:
            starts_over = resumed_at == 0
            self.run_id, self._last_steps = find_or_create(
                client, self.place, facts, self._say, starts_over=starts_over
            )
            for rollback in () if starts_over else untold:
                self.run_id, self._last_steps = (
                    go_on_anew(client, self.place, facts, self.run_id, rollback),
                    {},
                )
            describe(client, self.run_id, facts, resumed_at)

        def unsent() -> list[Job]:
            # MLflow orders points by time: those of before come first
            jobs = self._jobs_up_to(resumed_at, started_ms)
            if not resumed_at:
                return jobs
            look = self._job(partial(self._look_at_images, resumed_at), "a look at what pictures there are")
            return [*jobs, look, *self._picture_jobs(resumed_at)]

        started_ms = now_ms()
        is_begun = resumed_at > 0 or (self.run / RUN_FILE).exists()
        self._connect(open_run, unsent, may_be_away=is_begun and not self.place.is_local)

    def reopen(self) -> Status | None:
        """Open the run as it stands, to add to it; how it ended before, or None when it has never begun here.

        Raises: UsageError when the server does not answer or does not know the run.
        """
        record = read_record(self.run)
        if record is None:
            return None
        self.run_id = str(record["run_id"])
        found: list[RunInfo] = []
        self._connect(lambda client: found.append(client.get_run(self.run_id).info))
        self._ended_ms = found[0].end_time
        return next((status for status, name in ENDED.items() if name == found[0].status), "stopped")

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
        is_new = self.place.is_local and not database.exists()
        quieten()

        def connect() -> None:
            with named_errors():
                self._client = connections.make_client(self._uri)
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
                if self.place.is_local
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
            if step > self._last_steps.get(key, -1)
        ]
        if metrics:
            with named_errors():
                self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _jobs_up_to(self, step: int, time_ms: int) -> list[Job]:
        """The points of metrics.jsonl up to a step; those that the server has are left out at sending."""
        lines = [line for line in read_metrics(self.run) if line["step"] <= step]
        jobs = (_points(line.pop("step"), line, time_ms) for line in lines)
        return [job for job in jobs if job is not None]

    def log_metrics(self, step: int, values: dict[str, Value]) -> None:
        assert self._sender is not None, "start() comes first"
        self._newest_step = max(self._newest_step, step)
        if (job := _points(step, values, now_ms())) is not None:
            self._sender.put(job)
        if "verdict" in values and (said := [values.get(key) for key in VERDICT]) != self._verdict:
            self._verdict = said
            told = {key: str(value) for key, value in zip(VERDICT, said, strict=True) if value is not None}
            self._set_tags(told)

    def _set_tags(self, tags: dict[str, str]) -> None:
        def send(client: MlflowClient) -> None:
            for key, value in tags.items():
                client.set_tag(self.run_id, key, without_credentials(value))

        self._put(send, f"the tags {', '.join(tags)}")

    def log_file(self, path: Path, folder: str = "") -> None:
        self._files[path, folder] = None
        self._put(lambda client: self._send_file(client, path, folder), f"the file {path.name}")

    def log_above(self, path: Path) -> None:
        """A file of the run that this one lies below; of none where it lies below none."""

        def send(client: MlflowClient) -> None:
            if (above := client.get_run(self.run_id).data.tags.get(PARENT)) is not None:
                self._send_file(client, path, run_id=above)

        self._put(send, f"the file {path.name}")

    def _send_file(self, client: MlflowClient, path: Path, folder: str = "", run_id: str = "") -> None:
        """run_id: of another run than this one."""
        of = run_id or self.run_id
        with path.open("rb") as file:  # MLflow may say of a missing file whatever its store says
            data = file.read() if path.suffix in TEXT else b""
        text = data.decode(errors="replace")
        if (clean := without_secrets(text)) != text:
            client.log_text(of, clean, f"{folder}/{path.name}" if folder else path.name)
        else:
            client.log_artifact(of, str(path), folder or None)

    def log_picture(self, path: Path, step: int) -> None:
        if self._sender is None:  # a run that failed is closed while its last pictures are still drawn
            return
        for job in self._picture(path, step):
            self._sender.put(job)

    def _look_at_images(self, resumed_at: int, client: MlflowClient) -> None:
        """A process that was killed may have sent pictures of steps that come again, or not all of before."""
        # should the list be refused, those of before count as sent
        self._shown = {(path.stem, step) for step, path in step_pictures(self.run) if step <= resumed_at}
        self._shown = shown_images(client, self.run_id)

    def _picture_jobs(self, up_to: int) -> list[Job]:
        """Those of steps that still count; what the server has is left out at sending."""
        found = [(step, path) for step, path in step_pictures(self.run) if step <= up_to]
        newest = {path.name: step for step, path in found}
        return [
            job
            for step, path in found
            for job in self._picture(path, step, as_file=newest[path.name] == step, once=True)
        ]

    def _picture(self, path: Path, step: int, *, as_file: bool = True, once: bool = False) -> list[Job]:
        """As a file it is shown whole, the newest of its name; as an image of a step it can be followed.

        once: send no file either where the image is there. Pictures that were taken back are passed over.
        """

        def is_shown() -> bool:
            return (path.stem, step) in self._shown

        def send_file(client: MlflowClient) -> None:
            if path.exists() and not (once and is_shown()):
                self._send_file(client, path, "pictures")

        def send_image(client: MlflowClient) -> None:
            if path.exists() and not is_shown():
                log_image(client, self.run_id, path, step)

        what = f"the picture {path.name}"
        image = [self._job(send_image, what)] if path.suffix == ".png" else []
        return [self._job(send_file, what), *image] if as_file else image

    def log_finding(self, finding: Finding, step: int, files: Sequence[Path] = ()) -> None:
        """A run of its own below this one, with these files."""
        begun = Begun()  # what a server that went away in between has already taken

        def send(client: MlflowClient) -> None:
            log_finding(client, self.run_id, finding, step, begun)

        def send_file(path: Path, client: MlflowClient) -> None:
            self._send_file(client, path, run_id=begun.run_id)

        self._put(send, finding.name)
        for path in files:
            self._put(partial(send_file, path), path.name)

    def roll_back(self, to_step: int, note: str) -> None:
        """The MLflow run ends, and another goes on, with all points up to `to_step`."""
        rollback = Rollback(self._newest_step, to_step, note, now_ms())
        known = (*self._facts.rollbacks, (rollback.at_step, to_step, note))
        self._facts = replace(self._facts, rollbacks=known)
        try:
            note_rollback(self.run, rollback)
        except ForeframeError as error:  # on this rank alone: the others would wait for it in vain
            file, reason = self.run / RUN_FILE, error.__cause__ or error
            self._say(f"{file} is damaged ({reason}); it is written anew once MLflow knows of the rollback")
        facts = replace(self._facts, tags={**self._facts.tags, "rollback": rollback.in_words})

        def go_on(client: MlflowClient) -> None:
            self.run_id = go_on_anew(client, self.place, facts, self.run_id, rollback)
            self._last_steps, self._shown = {}, set()
            describe(client, self.run_id, facts, to_step)

        self._put(go_on, f"the rollback {rollback.in_words}")
        assert self._sender is not None
        for job in (*self._jobs_up_to(to_step, rollback.time_ms), *self._picture_jobs(to_step)):
            self._sender.put(job)
        for path, folder in list(self._files):
            self.log_file(path, folder)
        self._newest_step, self._verdict = to_step, []

    def _job(self, send: Callable[[MlflowClient], object], what: str) -> Job:
        def call() -> None:
            assert self._client is not None, "no job comes before the connection"
            with named_errors():
                send(self._client)

        return Job(call=call, what=what)

    def _put(self, send: Callable[[MlflowClient], object], what: str) -> None:
        assert self._sender is not None, "start() comes first"
        self._sender.put(self._job(send, what))

    def flush(self, longest_s: float = FLUSH_S) -> None:
        """Waits for a server that answers; one that is away is not waited for."""
        if self._sender is not None and self._sender.away_since is None:
            self._sender.drain(longest_s)

    def close(self, status: Status) -> None:
        if self._sender is None:
            return
        ended, at = ENDED[status], self._ended_ms
        self._put(lambda client: client.set_terminated(self.run_id, ended, at), "the run's end")
        left = self._sender.drain(CLOSE_WAIT_S)
        self._sender.stop()
        self._sender.join(CLOSE_WAIT_S)
        self._sender = None
        if left:
            self._say(
                f"MLflow at {self.address} did not take the last {left} entries; every point is in "
                f"{self.run / 'metrics.jsonl'}, and is sent when this run is resumed"
            )


def _points(step: int, values: dict[str, Value], time_ms: int) -> Job | None:
    """The numbers of a step; None when it has none."""
    points = tuple((key, value, time_ms, step) for key, value in numbers(values).items())
    return Job(points, what=f"points of step {step}") if points else None
