"""`foreframe stop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stop(
    job: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run's folder, whose last submission is meant; or a submission's."
        ),
    ],
    now: Annotated[
        bool, typer.Option("--now", help="End it without a save; what was done since the last one is lost.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Come back when all of it has ended.")] = False,
) -> None:
    """Stop a job that was submitted, on whatever place: it saves and ends, and goes on when submitted again.

    On a cluster by its own commands; on Kubernetes and Ray --now and --wait are refused.
    """
    from launch.submit.stop import stop as stop_job

    stop_job(job, lambda line: print(line, flush=True), now=now, waits=wait)
