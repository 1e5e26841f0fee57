"""The `foreframe` command. Each command imports what it needs when it runs, so that help is at once."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import FULL_DISK, DataError, ForeframeError, UsageError, why
from launch import cli_checkpoint, cli_config
from launch.cli_doctor import doctor
from launch.cli_estimate import estimate
from launch.cli_experiment import experiment
from launch.cli_options import NodeRank, NumDataNodes, Rendezvous
from launch.cli_probe import labels, probe
from launch.cli_rollout import plan, rollout
from launch.cli_status import status
from launch.cli_stop import stop
from launch.cli_submit import submit
from launch.cli_sweep import sweep
from launch.cli_train import supervise, train
from launch.ending import in_a_line, leave_end
from launch.unread import silence_unread_output

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig

EXIT_INTERRUPTED = 130
EXIT_FAILED = 1
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO)

app = typer.Typer(
    name="foreframe",
    help="Pretrain video world models: from a folder of videos to a probed encoder.",
    epilog="Start with `foreframe demo`: the whole road in a few minutes on a laptop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_config.app, name="config")
app.add_typer(cli_checkpoint.app, name="checkpoint")

DataFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/data/demo.yaml.")
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings laid over the file, such as encode.fps=8."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/demo/run.")]
Overwrite = Annotated[bool, typer.Option("--force", help="Replace another data set that is at `out`.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="A Ray cluster, such as auto or 10.0.0.1:6379; without it Ray is started on this machine.",
    ),
]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, whole or not at all.")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Go on with keys missing or left over; they are listed.")
]
OverwriteWeights = Annotated[bool, typer.Option("--force", help="Replace the weights that are at OUT.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"foreframe {version('foreframe')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: Annotated[  # DeepSpeed's launcher gives it to every rank; LOCAL_RANK says the same
        int | None, typer.Option("--local_rank", hidden=True)
    ] = None,
) -> None:
    pass


@app.command(epilog="Example: foreframe demo --videos ~/clips --out runs/mine")
def demo(
    out: Annotated[Path, typer.Option(help="Folder that everything is written to.")] = Path("runs/demo"),
    videos: Annotated[
        Path | None, typer.Option(help="Folder of your own videos, instead of rendered ones.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; without it as in configs/train/tiny-cpu.yaml.")
    ] = None,
    num_videos: Annotated[int, typer.Option(min=4, help="Videos to render, of a few seconds each.")] = 200,
    force: Annotated[
        bool, typer.Option("--force", help="Remove what an earlier demo wrote to --out first.")
    ] = False,
) -> None:
    """Walk the whole road once: videos, shards, two ranks of training, MLflow, a probe, a report."""
    from launch.demo import run_demo

    run_demo(out, videos=videos, steps=steps, num_videos=num_videos, force=force)


@app.command(epilog="Example: foreframe smoke --device cuda")
def smoke(
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: cuda where there is one.")] = "auto",
) -> None:
    """Test this machine in under two minutes: attention, training steps, save and resume."""
    if device not in ("cuda", "cpu", "auto"):
        raise UsageError(f"--device is {device!r}: need cuda, cpu or auto")
    from launch.smoke import run_smoke

    if not run_smoke(device):
        raise typer.Exit(EXIT_FAILED)


def _read_data_config(config: str, overrides: list[str] | None, ray_address: str | None) -> DataConfig:
    from data_pipeline.config import DataConfig
    from launch.config import read_config

    address = [] if ray_address is None else [f"ray.address={ray_address}"]
    return read_config(config, [*(overrides or []), *address], DataConfig)


@app.command(epilog="Example: foreframe index configs/data/demo.yaml sources=clips out=data/mine")
def index(
    config: DataFile,
    overrides: DataOverrides = None,
    ray_address: RayAddress = None,
    force: Overwrite = False,
) -> None:
    """Inspect videos and list them in a table, those that cannot be used with the reason."""
    settings = _read_data_config(config, overrides, ray_address)
    from launch.data import run_index

    print(f"wrote {run_index(settings, force=force)}")


@app.command(epilog="Example: foreframe shard configs/data/demo.yaml sources=clips out=data/mine")
def shard(
    config: DataFile,
    overrides: DataOverrides = None,
    ray_address: RayAddress = None,
    redrive: Annotated[
        bool,
        typer.Option(
            "--redrive",
            help="Try a finished set's failures again, into new shards; those that stand never change.",
        ),
    ] = False,
    force: Overwrite = False,
    nnodes: NumDataNodes = 1,
    node_rank: NodeRank = 0,
    rendezvous: Rendezvous = None,
) -> None:
    """Cut videos into clips and pack them into WebDataset shards; goes on where it was interrupted.

    On several machines the same command is started on each, with --nnodes, --node-rank and --rendezvous.
    """
    from launch.processes import end_with_supervisor, stops_at_once

    is_supervised = end_with_supervisor()
    settings = _read_data_config(config, overrides, ray_address)
    if redrive and force:
        raise UsageError("--redrive adds to a data set and --force replaces it: give one of them")
    if nnodes > 1:
        from launch.ray_nodes import shard_on_node

        options = ["--redrive"] * redrive + ["--force"] * force
        raise typer.Exit(
            shard_on_node(settings, [config, *(overrides or []), *options], nnodes, node_rank, rendezvous)
        )
    from launch.data import run_redrive, run_shard

    with stops_at_once(says=not is_supervised):
        if redrive:
            run_redrive(settings)
            return
        run_shard(settings, force=force)
    print(f"next   foreframe train configs/train/tiny-cpu.yaml data.shards={settings.out} --nproc 2")


@app.command(epilog="Example: foreframe verify data/mine --deep")
def verify(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set's folder or s3:// prefix.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every clip too; without it, hashes alone are compared.")
    ] = False,
) -> None:
    """Compare a data set's shards with their index, and print what it holds."""
    from launch.data import run_verify

    run_verify(dataset, deep)


app.command(epilog="Example: foreframe train configs/train/tiny-cpu.yaml optim.lr=1e-3 --nproc 2")(train)
app.command(epilog="Example: foreframe supervise configs/train/tiny-cpu.yaml --nproc 2")(supervise)
app.command(
    epilog="Example: foreframe submit configs/train/vits16-16f.yaml --on slurm --nodes 2 --gpus-per-node 8"
)(submit)
app.command(epilog="Example: foreframe sweep configs/train/tiny-cpu.yaml optim.lr=1e-3,2e-3 seed=0,1,2")(
    sweep
)
app.command(epilog="Example: foreframe experiment collapse --quick")(experiment)
app.command(epilog="Example: foreframe stop runs/demo/run --wait")(stop)
app.command(epilog="Example: foreframe status runs/demo/run --watch")(status)
app.command(epilog="Example: foreframe doctor configs/train/tiny-cpu.yaml --hosts node1,node2")(doctor)
app.command(
    epilog="Example: foreframe estimate configs/train/vjepa2-vitl16.yaml --nodes 16 --gpus-per-node 8"
)(estimate)


app.command(epilog="Example: foreframe probe runs/demo/run --data data/labelled --kind attentive,knn")(probe)
app.command(
    epilog="Example: foreframe labels train.csv train-list.csv --format kinetics --videos videos/train"
)(labels)
app.command(epilog="Example: foreframe rollout runs/acting --steps 16")(rollout)
app.command(epilog="Example: foreframe plan runs/acting leaves=0 push=8 --search mppi")(plan)


@app.command(epilog="Example: foreframe report runs/demo/run")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="A run's folder, such as runs/demo/run; or several, side by side."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; without it report.html in the run, of several compare.html beside them."
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder that takes every figure too, as SVG and PDF, for a paper.")
    ] = None,
) -> None:
    """Write a run's report: one self-contained HTML file of health, probes, time, pictures and advice.

    With several runs: what differs, what they came to, and their curves together.
    """
    from launch.console import Stages, make_console
    from launch.results import compare_runs, report_run

    with Stages(make_console()).showing() as progress:
        path = (
            report_run(runs[0], out, progress, figures)
            if len(runs) == 1
            else compare_runs(runs, out, progress, figures)
        )
    print(f"open {path}")
    if figures is not None:
        print(f"figures in {figures}")


@app.command("import", epilog="Example: foreframe import vitl.pt weights/vitl --rope vjepa2")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A .pt of Meta's, a folder of transformers' VJEPA2Model, or a run's folder."
        ),
    ],
    out: OutFolder,
    rope: Annotated[
        str | None,
        typer.Option(help="Of a .pt that holds pos_embed: none for V-JEPA, vjepa2 for V-JEPA 2."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, where width and depth are unpublished ones.")
    ] = None,
    predictor_heads: Annotated[int | None, typer.Option(min=1, help="The same of the predictor.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the clips it was trained on; a .pt does not tell.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Their height and width in pixels.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Their frames a second.")] = None,
    of: Annotated[
        str | None,
        typer.Option(help="target, the moving average (the default where there is one), or context."),
    ] = None,
    allow_partial: AllowPartial = False,
    force: OverwriteWeights = False,
) -> None:
    """Bring weights into foreframe's folder, with a report of every key: taken, missing, unexpected."""
    from launch.weights import make_hints, run_import

    hints = make_hints(
        rope=rope, heads=heads, predictor_heads=predictor_heads, frames=frames, size=size, fps=fps, of=of
    )
    run_import(source, out, hints, allow_partial=allow_partial, force=force)
    print(f"wrote  {out}\nnext   foreframe export {out} OUT --format huggingface")


@app.command(epilog="Example: foreframe export runs/demo/run weights/demo")
def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, or weights that were imported or exported."),
    ],
    out: OutFolder,
    layout: Annotated[
        str, typer.Option("--format", help="foreframe, or huggingface for transformers' AutoModel.")
    ] = "foreframe",
    step: Annotated[int | None, typer.Option(min=0, help="Checkpoint's step; without it the last.")] = None,
    of: Annotated[
        str | None, typer.Option(help="target, the moving average (the default), or context.")
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Also make it a version of this model in the run's MLflow registry."
        ),
    ] = None,
    allow_partial: AllowPartial = False,
    force: OverwriteWeights = False,
) -> None:
    """Write encoder and predictor as safetensors with a model card, or as transformers loads them."""
    from launch.weights import register_weights, run_export

    weights = run_export(
        run, out, layout, step=step, of=of, allow_partial=allow_partial, force=force, register=register
    )
    print(f"wrote {out}")
    if register is not None:
        found = register_weights(run, out, register, weights)
        print(
            f"registered {found.uri} at {found.address}\n"
            f'load  Encoder.from_pretrained(mlflow.artifacts.download_artifacts("{found.uri}"))'
        )


@app.command(epilog="Example: foreframe ui runs/demo/run --port 5001")
def ui(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own let others in.")
    ] = "127.0.0.1",
) -> None:
    """Open a run's MLflow pages in a browser, until Ctrl-C."""
    from launch.ui import run_ui

    run_ui(run, port, host)


def main() -> None:
    """Run the command; errors that a user can mend are sentences with their exit code, others tracebacks."""
    silence_unread_output()
    try:
        app(prog_name="foreframe")
    except ForeframeError as error:
        from launch.console import print_error

        print_error(error)
        kind = getattr(error, "kind", type(error).__name__)
        leave_end(error.exit_code, kind, str(error), may_pass=error.may_pass)
        sys.exit(error.exit_code)
    except OSError as error:
        is_mistyped = error.errno == errno.ENAMETOOLONG
        if error.errno not in (*FULL_DISK, *FORBIDDEN) and not is_mistyped:
            leave_end(EXIT_FAILED, type(error).__name__, in_a_line(error), may_pass=True)
            raise
        from launch.console import print_error

        what = "written" if error.errno in FULL_DISK else "read or written"
        kind_of_error = UsageError if is_mistyped else DataError
        told = kind_of_error(f"{error.filename or 'a file'} could not be {what}: {why(error)}")
        print_error(told)
        leave_end(told.exit_code, kind_of_error.__name__, str(told), may_pass=False)
        sys.exit(told.exit_code)
    except Exception as error:  # a crash: the supervisor is told, the traceback goes on
        leave_end(EXIT_FAILED, type(error).__name__, in_a_line(error), may_pass=True)
        raise
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:
            print("interrupted; nothing half-written counts, the same command goes on", file=sys.stderr)
        raise
