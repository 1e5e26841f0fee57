"""`foreframe submit`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.cli_options import AllowChange, Overrides, ProfileSteps

On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        help="local, ssh, slurm, kubernetes or ray; or a YAML file of such a place, as in configs/launch.",
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="KEY=VALUE",
        help="Settings laid over the place, such as partition=gpu; may be repeated.",
    ),
]
Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="Machines; the same as --with nodes=N.")]
GpusPerNode = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-node", min=0, help="GPUs, and ranks, of each; the same as --with gpus_per_node=N."
    ),
]
RanksPerNode = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        min=1,
        help="Ranks of each machine, where not one a GPU; the same as --with ranks_per_node=N.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Freeze the job, print what would be run, and start nothing.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return at once; local and ssh jobs are else followed to their end.")
]
NoDataCheck = Annotated[
    bool,
    typer.Option(
        "--no-data-check", help="Do not read a clip here first, where this machine cannot reach the data."
    ),
]


def submit(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A YAML file of configs/train or configs/data, or a run's folder."
        ),
    ],
    overrides: Overrides = None,
    on: On = "local",
    settings: With = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    nproc: RanksPerNode = None,
    dry_run: DryRun = False,
    detach: Detach = False,
    allow_change: AllowChange = None,
    profile: ProfileSteps = None,
    no_data_check: NoDataCheck = False,
) -> None:
    """Run a job on this machine, on hosts, on a cluster: training or sharding, by what its config holds.

    Code, config and script are frozen first; the job runs these, whatever is edited while it waits.
    """
    from launch.submit.places import read_place
    from launch.submit.submission import Asked, make_job, read_job_config
    from launch.submit.submission import submit as hand_over

    place = read_place(on, laid_over(settings, nodes, gpus_per_node, nproc))
    found = read_job_config(config, overrides or [], place)
    job = make_job(found, place, allow_change or (), profile=profile)
    asked = Asked(is_dry=dry_run, detach=detach, checks_data=not no_data_check)
    started = hand_over(job, place, asked, say)
    if started is not None:
        raise typer.Exit(started.exit_code)


def laid_over(
    settings: list[str] | None, nodes: int | None, gpus_per_node: int | None, nproc: int | None = None
) -> list[str]:
    """The place's settings as given, those with an option of their own among them."""
    shorthands = {"nodes": nodes, "gpus_per_node": gpus_per_node, "ranks_per_node": nproc}
    return [*(settings or []), *(f"{key}={value}" for key, value in shorthands.items() if value is not None)]


def say(line: str) -> None:
    print(line, flush=True)
