"""Weights from wherever they lie: our own folder, a Hugging Face folder, a .pt."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UsageError
from pretrain.weights.base import Weights
from pretrain.weights.folder import is_folder, read_folder
from pretrain.weights.huggingface import CONFIG, is_huggingface, read_huggingface
from pretrain.weights.meta import Hints, read_meta
from pretrain.weights.report import Report
from pretrain.weights.run import is_run, read_run

PICKLES = (".pt", ".pth", ".tar", ".bin")


def open_weights(path: Path, hints: Hints | None = None) -> tuple[Weights, Report]:
    """Weights and what became of every key, whole or not.

    hints: for a .pt; `of` for a run's folder too, of which the newest checkpoint is taken.
    Raises: UsageError when it is none of what can be read; CheckpointError when it is damaged.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: need a folder of weights, a run's folder or a .pt")
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UsageError(f"{path} is none of {', '.join(PICKLES)}: of safetensors, name the folder")
        return read_meta(path, hints or Hints())
    hints = hints or Hints()
    told = "which tells what a .pt does not: leave"
    if is_run(path) and hints != Hints(of=hints.of):
        raise UsageError(f"{path} is a run's folder, {told} all options out but --of")
    if not is_run(path) and hints != Hints():
        raise UsageError(f"{path} is a folder, {told} the options out")
    if is_folder(path):
        return read_folder(path)
    if is_huggingface(path):
        return read_huggingface(path)
    if is_run(path):
        return read_run(path, of=hints.of or "target")
    pickled = [found.name for found in sorted(path.iterdir()) if found.suffix in PICKLES]
    if (path / CONFIG).is_file() and pickled:
        raise UsageError(f"{path} holds {pickled[0]}, a pickle: save the model once more as safetensors")
    below = [found for found in sorted(path.iterdir()) if is_run(found) or is_folder(found)]
    hint = f"; {' and '.join(str(found) for found in below[:3])} has them" if below else ""
    raise UsageError(
        f"{path} holds no weights: need model.safetensors with model.json (foreframe) or config.json "
        f"(Hugging Face), or a run's checkpoints{hint}"
    )


def read_weights(path: Path, hints: Hints | None = None, *, allow_partial: bool = False) -> Weights:
    """Weights that are whole. Raises: CheckpointError naming every key at fault; else as `open_weights`."""
    weights, report = open_weights(path, hints)
    report.check(allow_partial=allow_partial)
    return weights
