"""`foreframe config show`, `diff` and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UsageError
from launch.cli_options import ConfigFile, NumRanks, Overrides

app = typer.Typer(no_args_is_help=True, help="Look at configs: what they hold, how two differ.")


@app.command("show", epilog="Example: foreframe config show configs/train/tiny-cpu.yaml --nproc 2")
def show(config: ConfigFile, overrides: Overrides = None, nproc: NumRanks = 1) -> None:
    """Print every setting with its meaning, defaults included, and what follows from them."""
    from launch.config import KINDS, consequences, explain, kind_of, read_config
    from pretrain.config import RunConfig

    def fits(found: object) -> None:
        if isinstance(found, RunConfig):
            consequences(found, nproc)

    print(
        explain(read_config(config, overrides or [], KINDS[kind_of(config)], [fits]), nproc, config), end=""
    )


@app.command("diff", epilog="Example: foreframe config diff runs/a runs/b")
def diff_(
    before: Annotated[str, typer.Argument(metavar="A", help="A YAML file, or a run's folder.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
) -> None:
    """Print the settings in which two configs differ, defaults included."""
    from launch.config import KINDS, diff, kind_of, read_config

    kinds = kind_of(before), kind_of(after)
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{before} is a {kinds[0]} config and {after} a {kinds[1]} config: they share no keys"
        )
    found = diff(*(read_config(path, [], KINDS[kinds[0]]) for path in (before, after)))
    width = max((len(key) for key, _, _ in found), default=0)
    for key, old, new in found:
        print(f"{key:<{width}}  {old} → {new}")
    if not found:
        print("equal: no setting differs")


@app.command(
    "check-manifest", epilog="Example: foreframe config check-manifest runs/a/submissions/001/kubernetes.yaml"
)
def check_manifest_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A Kubernetes manifest, rendered by submit or edited since."),
    ],
) -> None:
    """Look for faults in a Kubernetes manifest, without a cluster: fields, types, names, volumes, secrets."""
    from launch.submit.kubernetes.faults import check_manifest

    found = [f"{each.data['kind']} {each.data['metadata']['name']}" for each in check_manifest(file)]
    print(f"no faults found without a cluster: {', '.join(found)}")


@app.command("schema", epilog="Example: foreframe config schema --kind train > train.schema.json")
def schema_(
    kind: Annotated[str, typer.Option(help="train or data.")] = "train",
) -> None:
    """Print the JSON schema of configs, with which an editor completes and checks them."""
    from launch.config import KINDS, schema

    if kind not in KINDS:
        raise UsageError(f"--kind is {kind!r}: need {' or '.join(KINDS)}")
    print(schema(kind))
