"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a run's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings laid over the file, such as optim.lr=1e-3."),
]
NumRanks = Annotated[int, typer.Option("--nproc", min=1, help="Ranks (processes) on this machine.")]
NumNodes = Annotated[int, typer.Option("--nnodes", min=1, help="Machines of the job, --nproc ranks on each.")]
NumDataNodes = Annotated[
    int, typer.Option("--nnodes", min=1, help="Machines of the job; each lends all cores that it may use.")
]
NodeRank = Annotated[
    int, typer.Option("--node-rank", min=0, help="Which of the machines this is; 0 is the first.")
]
Rendezvous = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Where machines meet: the first one's address, and a free port there."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the result only, no progress.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Refuse a run's folder that exists; without it the run goes on.")
]
ProfileSteps = Annotated[
    int | None,
    typer.Option(
        "--profile",
        metavar="N",
        help="Record N steps after the first three: a trace and a table by part in the run's folder "
        "(docs/speed/profile.md). Training goes on.",
    ),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Go on though this setting differs from the run there, such as train.global_batch; may be "
        "given several times.",
    ),
]
