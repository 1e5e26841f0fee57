"""What every place that jobs are submitted to has in common: its settings, and what it does with a job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from data_pipeline.config import DataConfig, Section
from launch.lock import run_folder
from pretrain.config import RunConfig
from pretrain.tracking.base import without_secrets

JobConfig: TypeAlias = RunConfig | DataConfig
SECRET_NAME = re.compile(
    r"(?i)password|passwd|.pwd$|passphrase|secret|token|credential|(api|access|private|account|storage)_?key"
    r"|(?<!by)pass$|_key$|_key_id$|(^|_)pat$|(^|_)auth$|(^|_)sas$"
)
OUR_OWN = ("PYTHONPATH", "PYTHONSAFEPATH")  # by which nodes run the frozen code
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # no shell, no environment and no YAML takes all of them
CODE_FOLDER, ELEMENTS_FOLDER, LOGS_FOLDER = "code", "elements", "logs"


@dataclass(frozen=True)
class Job:
    """What is submitted: a config, and the folder that freezes it.

    kind: train (a supervised run) or shard. config: of a sweep that of its first element. folder: of the
    submission. workdir: from which relative addresses in configs are meant; nodes begin there. Both absolute.
    elements: of a sweep, their number; their configs are folder/elements/000.yaml and so on. 0: one job, of
    folder/config.yaml. configs: those of the elements, in order. allow_change: dotted keys in
    which a run that goes on may differ. profile: steps that it records.
    """

    kind: Literal["train", "shard"]
    name: str
    config: JobConfig
    folder: Path
    workdir: Path
    elements: int = 0
    allow_change: tuple[str, ...] = ()
    configs: tuple[JobConfig, ...] = ()
    profile: int | None = None

    @property
    def code(self) -> Path:
        """The frozen packages, which nodes put before all others (PYTHONPATH)."""
        return self.folder / CODE_FOLDER

    @property
    def logs(self) -> Path:
        return self.folder / LOGS_FOLDER

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def run(self) -> Path:
        """The folder in which the run, of a data set its submissions, can be looked at."""
        return self.folder.parents[1]

    def element_file(self, number: int) -> Path:
        return self.folder / ELEMENTS_FOLDER / f"{number:03d}.yaml"

    @property
    def options(self) -> list[str]:
        """Of `foreframe train` and `supervise`, as they were asked for."""
        allowed = [part for key in self.allow_change for part in ("--allow-change", key)]
        return allowed + ([] if self.profile is None else ["--profile", str(self.profile)])

    def arguments(
        self, place: Place, *, node_rank: str = "0", rendezvous: str = "", config: str | None = None
    ) -> list[str]:
        """What follows `python -m launch` on one node.

        node_rank, rendezvous: which of the nodes, and HOST:PORT of the first; may be a shell's variables.
        config: another file than this job's own.
        """
        words = ["supervise" if self.kind == "train" else "shard", config or str(self.config_file)]
        if self.kind == "train":
            words += ["--nproc", str(place.ranks)]
            words += self.options
        if place.nodes > 1:
            words += ["--nnodes", str(place.nodes), "--node-rank", node_rank, "--rendezvous", rendezvous]
        return words


@dataclass(frozen=True)
class Started:
    """A job that was handed over.

    id: by which its place knows it. told: (label, what to type) to watch it, read its log, stop it.
    exit_code: of a job that was followed to its end.
    """

    id: str | None
    told: tuple[tuple[str, str], ...] = ()
    exit_code: int = 0


class Place(Section):
    """Where jobs run. Each kind of place is a subclass that renders what is run there, and hands it over."""

    # Whether its nodes see the files of the machine that submits, under the same paths.
    shares_files: ClassVar[bool] = True

    kind: str
    nodes: int = Field(1, ge=1, le=100_000, description="Machines of a job.")
    gpus_per_node: int = Field(0, ge=0, le=64, description="GPUs of each; 0: its CPU is used.")
    ranks_per_node: int | None = Field(
        None, ge=1, le=1024, description="Training processes on each; null: one a GPU, or one on a CPU."
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables set on every node, such as NCCL_SOCKET_IFNAME; no credentials.",
    )
    python: str | None = Field(
        None, min_length=1, description="Python interpreter on the nodes; null: the one that submits."
    )

    @field_validator("env", mode="before")
    @classmethod
    def _values_are_text(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: str(each) if isinstance(each, int | float) else each for name, each in value.items()}

    @field_validator("env")
    @classmethod
    def _no_secret_is_written_down(cls, value: dict[str, str]) -> dict[str, str]:
        for name, each in value.items():
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"must be names of variables: {name!r} is none")
            if name in OUR_OWN:
                raise ValueError(f"must leave {name} out: the script sets it, so that the frozen code is run")
            is_secret = SECRET_NAME.search(name) and not name.upper().endswith(("_PATH", "_FILE", "_DIR"))
            if is_secret or without_secrets(f"{name}={each}") != f"{name}={each}":
                raise ValueError(
                    f"must be without credentials, as it is written into scripts: {name} looks like one; "
                    "keep it in the nodes' own environment or files, or name a secret by reference"
                )
            if CONTROL.search(each):
                raise ValueError(f"must be text in one line, without control characters: {name} has one")
        return value

    @field_validator("python")
    @classmethod
    def _is_a_program(cls, value: str | None) -> str | None:
        if value is not None and CONTROL.search(value):
            raise ValueError("must be the path or the name of a program, without control characters")
        return value

    @property
    def ranks(self) -> int:
        """Training processes of one node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)

    def check(self, job: Job) -> None:
        """Whether the job can run here, before anything is written. Raises: UsageError."""

    def files(self, job: Job) -> dict[str, str]:
        """Name and text of what is run: scripts, manifests. The first is what a person is shown. Pure."""
        raise NotImplementedError

    def start(self, job: Job, *, detach: bool) -> Started:
        """Hand the job over; its files are in job.folder.

        Raises: UsageError when it is refused, and nothing of it is left running then.
        """
        raise NotImplementedError


def folder_for(config: JobConfig) -> Path:
    """Where a job's submissions are kept: in a run's own folder; of a data set, which may lie in a store, in
    jobs/<name>."""
    return run_folder(config) if isinstance(config, RunConfig) else Path("jobs") / config.name
