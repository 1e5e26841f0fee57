"""`foreframe submit`: checks a job, freezes it, and hands it to its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import iglob
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, DataError, ForeframeError, Problem, UsageError
from data_pipeline.sources.globs import has_magic
from launch.config import CONFIG_FILE, KINDS, flatten, kind_of, read_config
from launch.lock import LOCK_FILE, is_bare
from launch.run_folder import check_data, refuse_changes
from launch.run_state import read_lock
from launch.submit.base import Job, JobConfig, Place, Started
from launch.submit.freeze import freeze, next_folder, read_record, update_record
from pretrain.checkpoint import step_folders
from pretrain.config import RunConfig, plan
from pretrain.parts import check_profile
from pretrain.tracking.base import without_secrets


@dataclass(frozen=True)
class Asked:
    """How a job is to be submitted. says: prints a line before it is handed over."""

    is_dry: bool = False
    detach: bool = False
    checks_data: bool = True


def read_job_config(path: str, overrides: Sequence[str], place: Place) -> JobConfig:
    """A train or data config, by its keys; of a run also whether its batch fits the ranks of the place.

    Raises: ConfigError, UsageError.
    """
    if KINDS[kind_of(path)] is RunConfig:
        ranks = place.nodes * place.ranks
        return read_config(path, overrides, RunConfig, [lambda found: plan(found, ranks)])
    return read_config(path, overrides, DataConfig)


def make_job(
    config: JobConfig,
    place: Place,
    allow_change: Sequence[str] = (),
    elements: int = 0,
    profile: int | None = None,
) -> Job:
    """Raises: UsageError when so many steps of it cannot be recorded."""
    if profile is not None and isinstance(config, RunConfig):
        check_profile(profile, plan(config, place.nodes * place.ranks))
    elif profile is not None:
        raise UsageError("--profile records training steps, and this config makes a data set: leave it out")
    return Job(
        kind="train" if isinstance(config, RunConfig) else "shard",
        name=config.name,
        config=config,
        folder=next_folder(config),
        workdir=Path.cwd(),
        elements=elements,
        allow_change=tuple(allow_change),
        profile=profile,
    )


def check_run(job: Job) -> None:
    """Whether the run may start, or go on, in its folder: now, and not after hours in a queue.

    Raises: ConfigError, UsageError as training would.
    """
    if not isinstance(job.config, RunConfig) or job.elements:  # of a sweep each element has a run of its own
        return
    for name, doing in ((f"{LOCK_FILE}-supervise-{0:05d}", "supervised"), (LOCK_FILE, "trained")):
        lock = read_lock(job.run / name)
        if lock.is_held:
            raise UsageError(
                f"{job.run} is being {doing} by process {lock.pid} on {lock.host}; wait for its end, "
                f"`foreframe stop {job.run}`, or choose another name=..."
            )
    known = job.run / CONFIG_FILE
    if known.is_file():
        if step_folders(job.run):
            refuse_changes(read_config(known, [], RunConfig), job.config, job.allow_change, job.run)
    elif job.run.is_dir() and not is_bare(job.run):
        raise UsageError(
            f"{job.run} exists and holds no run; choose another name=... or out=..., or empty it"
        )
    elif job.run.exists() and not job.run.is_dir():
        raise UsageError(f"{job.run} is a file; choose another name=... or out=...")


def refuse_secrets(config: JobConfig) -> None:
    """A submission is read by many, and stays. Raises: ConfigError with every setting that holds a secret."""
    need = "no credentials, which would be written into the submission: keep them in the nodes' environment"
    problems = [
        Problem(key, need)
        for key, value in flatten(config.model_dump(mode="json")).items()
        if any(without_secrets(text) != text for text in _texts(value))
    ]
    if problems:
        raise ConfigError.of(problems)


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def check_sources(config: DataConfig) -> None:
    """Whether what a data set is made of is there, as far as it lies on this machine. Raises: DataError."""
    for source in config.sources:
        if "://" in source:
            continue
        found = next(iglob(source, recursive=True), None) if has_magic(source) else os.path.exists(source)
        if not found:
            raise DataError(
                f"sources: {source} does not exist here; name a folder, file, list or glob that does, or "
                f"give --no-data-check where only the nodes see it"
            )


def submit(
    job: Job,
    place: Place,
    asked: Asked,
    say: Callable[[str], None],
    elements: Sequence[JobConfig] = (),
) -> Started | None:
    """Check the job, write its folder, and hand it to its place; None after a dry run.

    elements: configs of a sweep, job.elements of them. say: prints a line.
    Raises: UsageError, ConfigError, DataError when it cannot be submitted; what was frozen by then stays, as
    not started.
    """
    if any(letter in str(job.code) for letter in ":\n"):
        raise UsageError(
            f"{job.code}: Python takes no code from a folder with a colon in its name; choose another out=..."
        )
    for config in elements or (job.config,):
        refuse_secrets(config)
    place.files(job)  # what cannot be rendered is refused before anything is written
    for config in elements or (job.config,):
        if asked.checks_data and place.shares_files and not asked.is_dry:
            check_data(config) if isinstance(config, RunConfig) else check_sources(config)
    if not asked.is_dry:
        check_run(job)
        place.check(job)
    job = freeze(job, place, elements)
    files = place.files(job)
    first = next(iter(files))
    if asked.is_dry:
        update_record(job.folder, state="dry run")
        say(files[first].rstrip("\n"))
        say(f"\ndry run, nothing was started; frozen in {_short(job.folder)}: {', '.join(files)}")
        return None
    say(f"frozen {_short(job.folder)}")
    update_record(job.folder, state="started")
    try:
        started = place.start(job, detach=asked.detach)
    except BaseException as error:  # a Ctrl-C too: what waits for it would wait for ever
        _tell_refused(job, error)
        raise
    told = {"told": dict(started.told)} if started.told else {}  # one that was followed has told it itself
    update_record(job.folder, state="submitted", id=started.id, **told)
    for label, text in started.told:
        say(f"{label:<6} {text}")
    return started


def _tell_refused(job: Job, error: BaseException) -> None:
    """In the record; not of a job that has run, and was being followed when it was left."""
    if read_record(job.folder)["state"] == "started":
        told = str(error) if isinstance(error, ForeframeError) else "interrupted as it was handed over"
        update_record(job.folder, state=f"not started: {told}")


def _short(path: Path) -> str:
    """Relative to where it was typed, if it lies there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
