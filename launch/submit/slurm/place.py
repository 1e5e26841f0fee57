"""A Slurm cluster as a place: its settings, and how a job is checked and handed over."""

from __future__ import annotations

import os
import re
import shlex
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_pipeline.errors import UsageError
from launch.submit.base import Job, Place, Started
from launch.submit.slurm import cluster
from launch.submit.slurm.script import OWN_OPTIONS, SCRIPT, render
from pretrain.tracking.base import without_secrets

OPTION = re.compile(r"[a-z][a-z0-9-]*")

Word = Annotated[str, Field(min_length=1, pattern=r"^[^\s\"'\\#]+$")]


class SlurmPlace(Place):
    """The cluster of the machine on which `foreframe submit` is typed; its nodes see this one's files."""

    kind: Literal["slurm"] = "slurm"
    partition: Word | None = Field(
        None, description="Partition, or several with commas between; null: the cluster's default."
    )
    account: Word | None = Field(None, description="Account that is charged; null: the user's default.")
    qos: Word | None = Field(None, description="Quality of service; null: the user's default.")
    reservation: Word | None = Field(None, description="Reservation to run in.")
    constraint: Word | None = Field(None, description="Features that nodes must have, such as h100&ib.")
    time_limit_s: float | None = Field(
        None,
        ge=60,
        le=366 * 86400,
        description="Seconds until Slurm ends the job, in whole minutes; null: as the partition has it.",
    )
    signal_before_s: int = Field(
        300,
        ge=1,
        le=65535,
        description="Seconds before the time limit at which ranks are asked to save; enough to do it.",
    )
    max_requeues: int = Field(
        100, ge=0, description="How often a job that was preempted or ran out of time is queued again."
    )
    gres: Word | None = Field(
        None, description="Generic resources of a node, such as gpu:h100:8; null: gpus_per_node, of any type."
    )
    cpus_per_node: int | None = Field(
        None,
        ge=1,
        description="Cores of a node for this job; null: all where it is exclusive, else one for each rank "
        "and each worker of its loader (sharding: ray.workers).",
    )
    memory: str | None = Field(
        None,
        pattern=r"^\d+[KMGT]?$",
        description="Memory of a node for this job, such as 500G; 0: all of it.",
    )
    exclusive: bool = Field(False, description="Nodes are shared with no other job.")
    array_parallel: int | None = Field(
        None, ge=1, description="Elements of a sweep that run at once; null: as many as there is room for."
    )
    setup: list[str] = Field(
        default_factory=list,
        description="Lines of bash that run on the first node before all else, such as module load cuda; "
        "what they export reaches all nodes.",
    )
    extra_sbatch: dict[str, str] = Field(
        default_factory=dict,
        description="Other options of sbatch and their values, such as mail-type: END; an empty value "
        "for those that take none.",
    )

    @field_validator("setup", "extra_sbatch")
    @classmethod
    def _lines_hold_no_secret(cls, value: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        lines = value if isinstance(value, list) else [f"{name}={each}" for name, each in value.items()]
        for line in lines:
            if without_secrets(line) != line:
                raise ValueError(
                    f"{without_secrets(line)}: need no credentials, as it is written into the script; keep "
                    "them in a file that only you can read, and read that"
                )
        return value

    @field_validator("extra_sbatch")
    @classmethod
    def _are_options_of_its_own(cls, value: dict[str, str]) -> dict[str, str]:
        for name, each in value.items():
            if not OPTION.fullmatch(name):
                raise ValueError(f"{name} is {each!r}: need a long option without its dashes, as mail-type")
            if name in OWN_OPTIONS:
                raise ValueError(f"{name} is {each!r}: need it left out: {OWN_OPTIONS[name]}")
            if "\n" in each or '"' in each or "\\" in each:
                raise ValueError(f"{name} is {each!r}: need text on one line, no quotes or backslashes")
        return value

    @model_validator(mode="after")
    def _has_time_to_save(self) -> Self:
        if self.time_limit_s is not None and self.signal_before_s >= self.time_limit_s:
            raise ValueError(
                f"signal_before_s is {self.signal_before_s}: need less than time_limit_s, "
                f"{self.time_limit_s:g}, and enough for a save"
            )
        return self

    def check(self, job: Job) -> None:
        """Raises: UsageError when there is no Slurm, or it would not run such a job."""
        environment = self._environment()
        cluster.need_commands()
        partitions = cluster.partitions(environment)
        wanted = self.partition or environment.get("SBATCH_PARTITION")
        cluster.check_partition(partitions, wanted, self.nodes, self.time_limit_s, self.account)
        constraint = self.constraint or environment.get("SBATCH_CONSTRAINT")
        if constraint is not None:
            cluster.check_constraint(constraint, cluster.features(wanted, environment), wanted)
        cluster.try_script(render(job, self), wanted, environment)

    def files(self, job: Job) -> dict[str, str]:
        return {SCRIPT: render(job, self)}

    def start(self, job: Job, *, detach: bool) -> Started:
        done = cluster.run(
            ["sbatch", "--parsable", str(job.folder / SCRIPT)], self._environment(), cwd=job.workdir
        )
        if done.returncode:
            raise UsageError(f"Slurm refused the job: {cluster.said(done)}")
        number = done.stdout.strip().splitlines()[-1].partition(";")[0]
        logs = f"{shlex.quote(str(job.logs))}/{number}*.log"
        is_run = job.kind == "train" and not job.elements
        run = (("status", f"foreframe status {shlex.quote(str(job.run))}"),) if is_run else ()
        ends = (("ends", f"grep 'ended with' {logs}"),) if job.elements else ()
        then = "; " if job.elements else " && "  # it fails of an array of which some elements have ended
        return Started(
            number,
            (
                ("job", number),
                ("watch", f"squeue --jobs={number}"),
                *run,
                ("log", f"tail -F {logs}"),
                *ends,
                ("stop", f"scancel {number}"),
                ("save", f"scontrol update JobId={number} Requeue=0{then}scancel --signal=TERM {number}"),
            ),
        )

    def _environment(self) -> dict[str, str]:
        """This process's, without what would overrule the script: of an outer job, and options of sbatch."""
        kept = {
            "SBATCH_PARTITION": self.partition,
            "SBATCH_ACCOUNT": self.account,
            "SBATCH_QOS": self.qos,
            "SBATCH_RESERVATION": self.reservation,
            "SBATCH_CONSTRAINT": self.constraint,
            "SLURM_CONF": None,
            "SLURM_JWT": None,
        }
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_")) or (name in kept and kept[name] is None)
        }
