"""`foreframe import` and `foreframe export`: weights from elsewhere, and to elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import ValidationError

from data_pipeline.errors import UsageError
from launch.config import read_config
from pretrain.checkpoint.retention import PROBES_FILE
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_lines
from pretrain.weights.base import Weights
from pretrain.weights.folder import write_folder
from pretrain.weights.huggingface import write_huggingface
from pretrain.weights.meta import Hints
from pretrain.weights.publish import check_out
from pretrain.weights.read import PICKLES, open_weights
from pretrain.weights.run import is_run, run_weights

if TYPE_CHECKING:
    from pretrain.tracking.mlflow import Registered

Say = Callable[[str], None]
FORMATS = ("foreframe", "huggingface")
ENCODERS = ("target", "context")


def make_hints(**given: object) -> Hints:
    """What the command line tells of a .pt. Raises: UsageError naming the option."""
    try:
        return Hints.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} is {first['input']!r}: {first['msg'].lower()}") from error


def run_import(
    source: Path, out: Path, hints: Hints, *, allow_partial: bool, force: bool, say: Say = print
) -> None:
    """Read weights of Meta's, of Hugging Face or of our own, say what became of every key, write our folder.

    Raises: UsageError; CheckpointError when a key is missing or unexpected, unless that is allowed.
    """
    check_out(out, force=force)
    weights, report = open_weights(source, hints)
    if report.is_whole or allow_partial:
        say("\n".join(report.lines()))
    report.check(allow_partial=allow_partial)
    write_folder(weights, out, report, force=force)


def run_export(
    source: Path,
    out: Path,
    layout: str,
    *,
    step: int | None,
    of: str | None,
    allow_partial: bool,
    force: bool,
    register: str | None = None,
) -> Weights:
    """Write a run's weights, or those of a folder that was imported or exported, in a layout.

    register: the name that they are to have in MLflow's registry, with `register_weights` afterwards.
    Raises: UsageError when they cannot be said in that layout, or not be registered; CheckpointError.
    """
    if layout not in FORMATS:
        raise UsageError(f"--format is {layout!r}: need {' or '.join(FORMATS)}")
    if of is not None and of not in ENCODERS:
        raise UsageError(f"--of is {of!r}: need {' or '.join(ENCODERS)}")
    if register is not None:
        check_register(source, register)
    check_out(out, force=force)
    if source.is_dir() and is_run(source):
        weights = run_weights(source, step, cast('Literal["target", "context"]', of or "target"))
    else:
        if step is not None or of is not None:
            raise UsageError(f"{source} is no run's folder: --step and --of are for runs")
        try:
            weights, report = open_weights(source)
        except UsageError as error:
            if source.suffix not in PICKLES or not source.is_file():
                raise
            raise UsageError(
                f"{error}. export has no such options, `foreframe import {source} FOLDER` has: export FOLDER "
                f"then"
            ) from error
        report.check(allow_partial=allow_partial)
    if layout == "huggingface":
        write_huggingface(weights, out, force=force, allow_partial=allow_partial)
    else:
        write_folder(weights, out, force=force)
    return weights


def check_register(source: Path, name: str) -> None:
    """Raises: UsageError, before anything is written, when weights of a place cannot be registered."""
    from pretrain.tracking.mlflow import check_name, check_run

    if not (source.is_dir() and is_run(source)):
        raise UsageError(f"{source} is no run's folder: --register is for the weights of a run")
    check_name(name)
    check_run(source)


def register_weights(run: Path, out: Path, name: str, weights: Weights) -> Registered:
    """Make exported weights a version of a model in the registry of the run's MLflow.

    Raises: UsageError when that is away or refuses them.
    """
    from pretrain.tracking.mlflow import ModelFacts, register

    config = read_config(run, [], RunConfig)
    found = weights.description.provenance
    step = int(str(found["step"]))
    facts = {key: str(value) for key, value in found.items() if key != "name"} | {
        "folder": str(out.absolute())
    }
    return register(config.tracker, run, ModelFacts(name, out, step, facts, probe_scores(run, step)))


def probe_scores(run: Path, step: int) -> dict[str, float]:
    """What the last probe of a step found, `probe/trained/position`; none where there was no probe of it."""
    scores: dict[str, float] = {}
    for line in read_lines(run / PROBES_FILE):
        if line["step"] == step:
            scores |= {
                f"probe/trained/{name.replace(' ', '_')}": float(score)
                for name, score in (line.get("scores") or {}).items()
                if isinstance(score, (int, float))
            }
    return scores
