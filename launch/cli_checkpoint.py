"""`foreframe checkpoint list`, `verify` and `prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from data_pipeline.errors import CheckpointError

Place = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or the s3:// address of its checkpoint_store.")
]
app = typer.Typer(
    no_args_is_help=True, help="What checkpoints a run has, whether they are whole, and fewer of them."
)


@app.command("list", epilog="Example: foreframe checkpoint list runs/demo/run")
def list_(run: Place) -> None:
    """List all checkpoints, newest first, judged by their manifests and sizes; no file is read."""
    from launch.checkpoints import list_checkpoints
    from launch.console import make_console, make_table

    rows = list_checkpoints(run)
    make_console().print(
        make_table(
            f"Checkpoints of {run}",
            ["step", "size", "written", "ranks", "loss", "state"],
            [
                [
                    f"{row.step:,}" + (" latest" if row.is_latest else ""),
                    size(row.num_bytes),
                    row.written.strftime("%Y-%m-%d %H:%M"),
                    "—" if row.world_size is None else str(row.world_size),
                    "—" if row.loss is None else f"{row.loss:.4f}",
                    row.trouble or ", ".join(filter(None, ("whole", row.kept))),
                ]
                for row in rows
            ],
        )
    )


@app.command(epilog="Example: foreframe checkpoint verify runs/demo/run --step 300")
def verify(
    run: Place,
    step: Annotated[int | None, typer.Option(min=0, help="Only the one of this step.")] = None,
) -> None:
    """Read and hash every file: exit code 4 when one is not what was written."""
    from launch.checkpoints import verify_checkpoints
    from launch.console import Stages, make_console

    with Stages(make_console()).showing() as report:
        num_whole, problems = verify_checkpoints(run, step, report)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise CheckpointError(f"{len(problems)} damaged, {num_whole} whole:\n{listed}")
    print(f"{num_whole} whole, every byte as written")


@app.command(epilog="Example: foreframe checkpoint prune runs/demo/run --keep 1 --dry-run")
def prune(
    run: Place,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest stay.")],
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Multiples of so many steps stay too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
) -> None:
    """Remove old checkpoints and damaged ones; the newest whole one always stays."""
    from launch.checkpoints import prune_checkpoints

    gone, stays = prune_checkpoints(run, keep, keep_every, dry_run=dry_run)
    for name, num_bytes in gone:
        print(f"{'would remove' if dry_run else 'removed'} {name}, {size(num_bytes)}")
    total = size(sum(num_bytes for _, num_bytes in gone))
    did = "would go" if dry_run else "gone"
    print(f"{len(gone)} of {len(gone) + len(stays)} {did}, {total}; kept: {', '.join(stays)}")


def size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    value, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
