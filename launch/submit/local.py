"""This machine as a place: the same script that other places run, in this terminal or behind it."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Literal

from pydantic import field_validator

from data_pipeline.errors import UsageError, why
from data_pipeline.storage import write_whole
from launch.submit.base import Job, Place, Started
from launch.submit.freeze import update_record
from launch.submit.node_process import pid_file, start, start_time_of, told_of
from launch.submit.shell import command, interpreter, preamble

SCRIPT = "job.sh"


class LocalPlace(Place):
    """The machine on which `foreframe submit` is typed."""

    kind: Literal["local"] = "local"

    @field_validator("nodes")
    @classmethod
    def _is_one_machine(cls, value: int) -> int:
        if value != 1:
            raise ValueError(
                "must be 1: this machine is one; several are a place of kind ssh, slurm or others"
            )
        return value

    def check(self, job: Job) -> None:
        """Raises: UsageError where there is no such interpreter (the script would end with code 127), or
        fewer GPUs (ranks would train on the CPU).
        """
        if shutil.which(interpreter(self)) is None:
            raise UsageError(
                f"python is {interpreter(self)!r}, no program that can be run here: need an interpreter, "
                "or null for the one that submits"
            )
        if self.gpus_per_node:
            import torch

            there = torch.cuda.device_count()
            if there < self.gpus_per_node:
                raise UsageError(
                    f"gpus_per_node is {self.gpus_per_node}, and torch sees {there} on this machine; "
                    f"--nproc N --gpus-per-node 0 trains on the CPU"
                )

    def files(self, job: Job) -> dict[str, str]:
        if job.elements:
            raise UsageError("on this machine `foreframe sweep` runs its elements itself")
        words = [interpreter(self), "-m", "launch", *job.arguments(self)]
        what = "trains" if job.kind == "train" else "shards"
        told = f"#!/bin/sh\n# {job.name}: {what} on this machine.\nset -eu\n"
        text = f"{told}{preamble(job, self)}exec {command(words)}\n"
        return {SCRIPT: text}

    def start(self, job: Job, *, detach: bool) -> Started:
        """Without `detach` this process becomes the job, and does not come back."""
        script = str(job.folder / SCRIPT)
        if detach:
            start(job.logs, 0, ["/bin/sh", script], socket.gethostname())
            return Started(None, told_of(job))
        # Both are this process's after it has become the job, which can be asked to stop from elsewhere.
        began = start_time_of(os.getpid()) or 0
        told = {label: text for label, text in told_of(job) if label != "log"}  # it is printed here
        try:
            word = f"{socket.gethostname()} {os.getpid()} {began}\n"
            write_whole(pid_file(job.logs, 0), word.encode())
            update_record(job.folder, told=told)
            os.execv("/bin/sh", ["/bin/sh", script])
        except OSError as error:
            raise UsageError(f"{script} could not be run: {why(error)}") from error
