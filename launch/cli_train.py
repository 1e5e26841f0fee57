"""`foreframe train`, and `foreframe supervise`, which starts it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import EXIT_PREEMPTED, UsageError, why
from launch.cli_options import (
    AllowChange,
    ConfigFile,
    Fresh,
    NodeRank,
    NumNodes,
    NumRanks,
    Overrides,
    ProfileSteps,
    Quiet,
    Rendezvous,
)
from launch.ending import leave_end

MOST_ROWS = 20  # of attempts, at the end; --account prints all


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: NumRanks = 1,
    nnodes: NumNodes = 1,
    node_rank: NodeRank = 0,
    rendezvous: Rendezvous = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    allow_change: AllowChange = None,
    profile: ProfileSteps = None,
) -> None:
    """Train, or resume: the same command, or the run's folder as CONFIG, goes on from the last checkpoint.

    Under torchrun or DeepSpeed's launcher it joins the ranks that are there.
    """
    from launch.config import read_config
    from launch.processes import end_with_supervisor
    from pretrain.config import RunConfig, plan

    end_with_supervisor()
    ranks = int(os.environ.get("WORLD_SIZE", nproc)) if "RANK" in os.environ else nproc * nnodes
    settings = read_config(config, overrides or [], RunConfig, [lambda found: plan(found, ranks)])
    from launch.train import run_train

    result = run_train(
        settings,
        nproc=nproc,
        nnodes=nnodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        fresh=fresh,
        quiet=quiet,
        allow_change=allow_change or (),
        profile=profile,
    )
    if int(os.environ.get("RANK", "0")) == 0 and node_rank == 0:
        what = "probe" if result.stopped is None else "train"
        print(f"{result.summary()}\nrun    {result.run}\nnext   foreframe {what} {result.run}")
    if result.stopped is not None:
        leave_end(EXIT_PREEMPTED, "stopped", f"{result.stopped}: saved at step {result.step}", may_pass=False)
        raise typer.Exit(EXIT_PREEMPTED)


def supervise(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: NumRanks = 1,
    nnodes: NumNodes = 1,
    node_rank: NodeRank = 0,
    rendezvous: Rendezvous = None,
    max_failures: Annotated[
        int, typer.Option(min=1, help="Failures in a row without a new checkpoint, after which it gives up.")
    ] = 3,
    backoff_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds before a restart; doubled at each failure, up to 300.")
    ] = 5.0,
    grace_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds that a run asked to stop may take for its last save.")
    ] = 660.0,
    fresh: Fresh = False,
    quiet: Quiet = False,
    allow_change: AllowChange = None,
    profile: ProfileSteps = None,
    account: Annotated[
        bool, typer.Option("--account", help="Print all attempts of the run, and start nothing.")
    ] = False,
) -> None:
    """Train, and start again from the last checkpoint after a crash, a hang or a lost peer.

    What would end the same way again is not restarted: a wrong setting, damaged data, a full disk, a run
    that diverged. Ends with the exit code of `foreframe train`.
    """
    from launch.attempts import attempts_table, read_attempts
    from launch.config import read_config
    from launch.console import make_console
    from launch.lock import run_folder
    from launch.paths import is_folder
    from launch.processes import end_with_supervisor
    from pretrain.config import RunConfig, plan
    from pretrain.parts import check_profile

    end_with_supervisor()
    console = make_console()
    if account:
        is_run = is_folder(config)
        run = Path(config) if is_run else run_folder(read_config(config, overrides or [], RunConfig))
        attempts = read_attempts(run)
        if not attempts:
            raise UsageError(f"{run} has no restarts.jsonl: `foreframe supervise` has not started it")
        console.print(attempts_table(run, attempts))
        return

    from launch.meeting import Job
    from launch.supervise import Limits, Supervisor, train_command

    job = Job(nproc, nnodes, node_rank, rendezvous)
    settings = read_config(config, overrides or [], RunConfig, [lambda found: plan(found, job.world_size)])
    check_profile(profile, plan(settings, job.world_size))
    run = run_folder(settings)
    arguments = [config, *(overrides or []), "--nproc", str(nproc)]
    if nnodes > 1:
        arguments += ["--nnodes", str(nnodes), "--node-rank", str(node_rank), "--rendezvous", str(rendezvous)]
    arguments += ["--quiet"] * quiet + [
        part for key in allow_change or () for part in ("--allow-change", key)
    ]
    arguments += [] if profile is None else ["--profile", str(profile)]

    def say(sentence: str) -> None:
        console.print(f"  supervise {sentence}", markup=False)

    supervisor = Supervisor(
        run, train_command(arguments), Limits(max_failures, backoff_s, grace_s), say, node_rank
    )
    with held_for_supervision(run, node_rank, fresh=fresh):
        try:
            exit_code = supervisor.supervise()
        finally:
            if supervisor.num_attempts > 1:
                console.print(attempts_table(run, read_attempts(run)[-MOST_ROWS:]))
    raise typer.Exit(exit_code)


@contextmanager
def held_for_supervision(run: Path, node: int, *, fresh: bool) -> Iterator[None]:
    """The run's folder, made where there is none, for one supervisor a machine.

    Raises: UsageError when another holds it, when it cannot be made, or exists and should not.
    """
    from launch.lock import LOCK_FILE, is_bare, lock_run

    if fresh and run.exists() and not is_bare(run):
        raise UsageError(f"{run} exists; choose another name=..., or leave --fresh out to go on with it")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{run} cannot be written, choose another out=...: {why(error)}") from error
    try:
        with lock_run(run, f"{LOCK_FILE}-supervise-{node:05d}", "supervised"):
            yield
    finally:
        if run.is_dir() and is_bare(run):  # refused before there was a run
            for lock in run.glob(f"{LOCK_FILE}*"):
                lock.unlink(missing_ok=True)
            with suppress(OSError):
                run.rmdir()
