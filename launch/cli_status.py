"""`foreframe status`: how runs are, from another terminal or another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of runs, such as runs/demo/run; of a sweep or an experiment, all its runs.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line and run, the same keys for each.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Say how runs are: running, finished, stopped, failed or hung, how far, how healthy, what to type next.

    Reads their folders alone: it may run anywhere that sees them, changes nothing and holds up nothing.
    """
    from launch.console import make_console
    from launch.status import show

    try:
        show(runs, as_json=as_json, watch=watch, console=make_console())
    except KeyboardInterrupt:
        if not watch:
            raise
