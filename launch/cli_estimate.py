"""`foreframe estimate`: what a run takes, before it is started."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.cli_options import ConfigFile, Overrides


def estimate(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option("--nodes", "--nnodes", min=1, help="Machines of the job.")] = 1,
    gpus_per_node: Annotated[
        int,
        typer.Option("--gpus-per-node", "--nproc", min=1, help="GPUs of each, a rank on every one."),
    ] = 1,
    gpu: Annotated[
        str,
        typer.Option(
            help="h100, h200, b200, a100-80, a100-40, l40s, rtx4090, or cpu with --tflops and --memory."
        ),
    ] = "h100",
    mfu: Annotated[
        float | None,
        typer.Option(
            help="Share of the GPU's peak that the model's FLOPs get while it computes; without it 0.38, "
            "a ViT-g's on an H100."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Dollars a GPU hour; without it no cost is said.")
    ] = None,
    failures: Annotated[
        float | None,
        typer.Option(help="Failures of a node a day; without it those of Llama 3's training, 0.0038."),
    ] = None,
    storage: Annotated[float, typer.Option(help="GB/s of the shared storage, all nodes together.")] = 10.0,
    network: Annotated[
        float | None, typer.Option(help="Gbit/s of a GPU to other nodes; without it its usual machine's.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Peak TFLOP/s of a rank, in place of the GPU's.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GB of memory of a rank, in place of the GPU's.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name every constant that it rests on, and its source.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON, in bytes, seconds and operations.")
    ] = False,
) -> None:
    """Work out what a run takes: FLOPs, memory and what fits, network, loader, days, cost, checkpoints.

    On paper: nothing is built or started; what is assumed is said. Ends with a table over 1 to 1,024 GPUs.
    """
    from launch.estimate.gpus import gpu_of
    from launch.estimate.stated import FAILURES, MFU, Stated, check

    mfu = MFU if mfu is None else mfu
    failures = FAILURES if failures is None else failures
    check(mfu, failures, storage, price, network=network, tflops=tflops, memory=memory)
    device = gpu_of(gpu, tflops, memory, network)
    stated = Stated(device, nodes, gpus_per_node, mfu, failures, storage * 1e9, price)

    import json
    from dataclasses import asdict

    from launch.config import read_config
    from pretrain.config import RunConfig, plan

    settings = read_config(config, overrides or [], RunConfig, [lambda found: plan(found, stated.ranks)])
    from launch.estimate import estimate as work_out
    from launch.estimate import lines
    from launch.estimate.constants import constants, explained

    found = work_out(settings, stated)
    if as_json:
        told = found.plain()
        if explain:
            told |= {"constants": [asdict(each) for each in constants()]}
        print(json.dumps(told, indent=1))
        return
    print("\n".join([*lines(found), *(["", *explained(device.name)] if explain else [])]))
