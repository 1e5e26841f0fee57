"""`foreframe sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli_options import ConfigFile
from launch.cli_submit import DryRun, GpusPerNode, NoDataCheck, Nodes, On, With, laid_over, say

if TYPE_CHECKING:
    from launch.submit.base import Place
    from launch.sweep.elements import Sweep

Axes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE,VALUE",
        help="An axis of the grid, such as optim.lr=1e-3,2e-3 or seed=0,1,2; with one value one for all.",
    ),
]


def sweep(
    config: ConfigFile,
    axes: Axes = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="Elements by line, `optim.lr=1e-3 seed=1`; or .jsonl, or a list in .yaml. With axes, each "
            "line with each point of the grid.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the sweep, whose runs lie in out/NAME; without it CONFIG's, -sweep."),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", min=1, max=1024, help="Ranks of an element; on a cluster those of a node."),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Elements at a time; on this machine one.")
    ] = None,
    on: On = "local",
    settings: With = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    dry_run: DryRun = False,
    no_data_check: NoDataCheck = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="On a cluster also elements that wait in an earlier job, if it is gone."
        ),
    ] = False,
) -> None:
    """Train a grid or a list of settings, as runs of one group in MLflow; on this machine, or a cluster.

    All configs are checked before the first starts. The same command goes on where it was: what has finished
    is not run again. An element that fails does not stop the others; the exit code tells.
    """
    from launch.submit.local import LocalPlace
    from launch.submit.places import read_place
    from launch.sweep.axes import read_axes
    from launch.sweep.elements import make_sweep

    more = [*(settings or []), *([] if nproc is None else [f"ranks_per_node={nproc}"])]
    place = read_place(on, laid_over(more, nodes, gpus_per_node))
    is_here = isinstance(place, LocalPlace)
    ranks = place.nodes * place.ranks
    asked = read_axes(axes or [], listed)
    found = make_sweep(config, asked, name=name, ranks=ranks, shares_store=is_here)
    if is_here:
        raise typer.Exit(here(found, place, parallel or 1, is_dry=dry_run, checks_data=not no_data_check))
    from launch.sweep.cluster import hand_over

    hand_over(found, place, parallel, say, is_dry=dry_run, checks_data=not no_data_check, submits_again=again)


def here(found: Sweep, place: Place, parallel: int, *, is_dry: bool, checks_data: bool) -> int:
    """Run a sweep on this machine, and print what it came to."""
    from launch.console import make_console
    from launch.sweep.elements import shown
    from launch.sweep.local import check_elements, check_python, run_here
    from launch.sweep.table import following, outcomes_of, tables_of

    console, python = make_console(), check_python(place)
    count = len(found.elements)
    what = f"{count} element{'s' * (count > 1)} of {place.ranks} rank{'s' * (place.ranks > 1)}"
    say(f"sweep  {shown(found.folder)}: {what}, {min(parallel, count)} at a time")
    code = 0
    if not is_dry:
        if checks_data:
            check_elements(found)
        code, found = run_here(
            found, nproc=place.ranks, parallel=parallel, env=place.env, say=say, python=python
        )
    outcomes = outcomes_of(found)
    for table in tables_of(found, outcomes):
        console.print(table)
    if is_dry:
        say("dry run, nothing was started or written")
        return 0
    for label, text in following(found, outcomes):
        say(f"{label:<6} {text}")
    return code
