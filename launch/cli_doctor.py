"""`foreframe doctor`: what would stop a job here, or over several machines, before it is started."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

SSH_CONFIG_VARIABLE = "FOREFRAME_SSH_CONFIG"
EXIT_FAILED = 2


def _ended(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="A train or data config, or a run's folder: what it needs is checked too."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings laid over the file, such as data.workers=8."),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(
            "--hosts",
            metavar="HOSTFILE|HOST,HOST",
            help="Look at these machines too, over ssh, and at the links between every two of them.",
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc", min=1, help="Ranks meant for each machine, against its GPUs; else a hostfile's slots."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Move fewer bytes: disk, links, S3.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            "--ssh-config", metavar="FILE", envvar=SSH_CONFIG_VARIABLE, help="Settings of ssh, as for ssh -F."
        ),
    ] = None,
) -> None:
    """Look a machine over before a job: versions, GPUs, limits, network, disk, stores, what was left behind.

    Each line passes, warns or fails, with the remedy. Ends with 2 when a line fails; warnings end with 0.
    """
    import json
    import sys

    from data_pipeline.config import DataConfig
    from launch.config import kind_of, read_config
    from launch.console import make_console
    from launch.doctor.check import is_one_running
    from launch.doctor.hosts import ASKED_VARIABLE, examine_hosts, hosts_in
    from launch.doctor.link import end_with_reader
    from launch.doctor.local import examine
    from launch.doctor.show import show
    from pretrain.config import RunConfig, plan

    if os.environ.get(ASKED_VARIABLE):
        end_with_reader()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: connections are ended on the way out
        signal.signal(number, _ended)
    given = [config, *(overrides or [])] if config is not None else []
    ranks = None if hosts is None else hosts_in(hosts, nproc)
    counts = [nproc] if ranks is None else list(ranks.values())
    # A host that another doctor asks is given its own ranks, of more that the batch is split over.
    total = 0 if os.environ.get(ASKED_VARIABLE) else sum(count or 0 for count in counts)

    def fits(found: RunConfig) -> None:
        if total:
            plan(found, total)

    settings: RunConfig | DataConfig | None = None
    if config is not None:
        settings = (
            read_config(config, overrides or [], RunConfig, [fits])
            if kind_of(config) == "train"
            else read_config(config, overrides or [], DataConfig)
        )
    console, telling = make_console(), make_console(stderr=True)
    with telling.status("looking") if telling.is_terminal else nullcontext() as status:

        def doing(what: str) -> None:
            if status is not None:
                status.update(f"looking at {what}")

        if ranks is not None:
            found = examine_hosts(ranks, given, is_quick=quick, ssh_config=ssh_config, doing=doing)
            plain, groups, failed = found.plain(), found.told(), found.num_failed
        else:
            report = examine(settings, nproc=nproc, is_quick=quick, doing=doing)
            plain, groups, failed = report.plain(), list(report.groups), report.num_failed
    if as_json:
        print(json.dumps(plain, indent=1))
    else:
        show(groups, console)
    exit_code = EXIT_FAILED if failed else 0
    if is_one_running():  # what the kernel holds, as a mount that is gone, would hold the end too
        sys.stdout.flush()
        os._exit(exit_code)
    raise typer.Exit(exit_code)
