"""`foreframe experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UsageError


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="One of configs/experiments (actions, chance, collapse, noise, planning, pooling, recipe), "
            "or a YAML file of that form.",
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of all runs, such as health.every=10; none that arms differ in.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, max=1000, help="Runs of each arm; 5 as shipped.")
    ] = None,
    first_seed: Annotated[
        int | None,
        typer.Option("--first-seed", min=0, max=1000, help="Seeds from here on; others may run elsewhere."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few seeds and steps: to see it go, not to claim anything.")
    ] = False,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Runs at a time; as many as there are cores.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where OUT/NAME is made.")] = Path(
        "runs/experiments"
    ),
    join: Annotated[
        list[Path] | None,
        typer.Option(
            "--join",
            metavar="FOLDER",
            help="Run nothing: put together what commands with other seeds made, into OUT/NAME-joined; once "
            "for each of their folders.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how long they take, start nothing.")
    ] = False,
) -> None:
    """Try a claim: every arm with several seeds, a table with mean and spread, a figure.

    Data are rendered, runs are one group in MLflow, on the CPU. The same command goes on where it was; what
    has finished is not run again. docs/ideas.md says what the claims are and what was seen.
    """
    from launch.experiment.command import Asked, join_results, run_experiment

    asked = Asked(name, tuple(changes or ()), seeds, quick, parallel, out, dry_run, first_seed)
    if join:
        given = {"KEY=VALUE": changes, "--seeds": seeds, "--first-seed": first_seed, "--dry-run": dry_run}
        if others := [name for name, value in given.items() if value is not None and value is not False]:
            raise UsageError(f"--join runs nothing: leave {', '.join(others)} out")
        raise typer.Exit(join_results(asked, join, typer.echo))
    raise typer.Exit(run_experiment(asked, typer.echo))
