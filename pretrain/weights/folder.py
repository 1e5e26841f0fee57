"""Our own folder of weights: model.safetensors, model.json with all that the numbers mean, and a card.

model.safetensors   float32 tensors by our names, encoder.… and predictor.…
model.json          format version, model config, clips, normalisation, mask kinds, provenance
README.md           the card
import.json         of imported weights: what became of every key
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.errors import CheckpointError
from pretrain.config.base import first_finding
from pretrain.weights.base import Description, Weights, expected_shapes
from pretrain.weights.card import own_card
from pretrain.weights.names import own_parts
from pretrain.weights.publish import TENSORS, read_json, read_tensors, whole_folder, write_json, write_tensors
from pretrain.weights.report import Report, take

DESCRIPTION = "model.json"
CARD = "README.md"
REPORT = "import.json"
FORMAT = "foreframe-weights"
FORMAT_VERSION = 1


def is_folder(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def write_folder(weights: Weights, out: Path, report: Report | None = None, *, force: bool = False) -> None:
    """Write weights, whole or not at all. report: of their import, kept beside them.

    Raises: UsageError when `out` exists and `force` does not allow to replace it; CheckpointError.
    """
    header: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    with whole_folder(out, force=force) as folder:
        write_tensors(folder / TENSORS, weights.tensors)
        write_json(folder / DESCRIPTION, header | weights.description.model_dump(mode="json"))
        (folder / CARD).write_text(own_card(weights), encoding="utf-8")
        if report is not None:
            write_json(folder / REPORT, report.plain())


def read_folder(path: Path) -> tuple[Weights, Report]:
    """Weights and what became of their keys. Raises: CheckpointError when a file is missing or damaged."""
    plain = read_json(path / DESCRIPTION)
    version = plain.pop("format_version", None)
    if plain.pop("format", None) != FORMAT or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path / DESCRIPTION} is of format version {version}; this release reads {FORMAT_VERSION}"
        )
    try:
        description = Description.model_validate(plain)
    except ValidationError as error:
        raise CheckpointError(f"{path / DESCRIPTION} cannot be used: {first_finding(error)}") from error
    shapes, report = expected_shapes(description), Report(str(path))
    tensors = take(own_parts(list(shapes)), shapes, read_tensors(path / TENSORS), report)
    return Weights(description, tensors), report
