"""Everything that is wrong with a manifest and can be told without a cluster, one sentence a fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import ConfigError, Problem, UsageError, why
from launch.submit.kubernetes.rules import document_problems, manifest_problems
from launch.submit.kubernetes.shape import model_of, shape_problems
from launch.yaml_file import Document, read_documents


def faults(documents: Sequence[Document]) -> list[Problem]:
    """In the order of the manifest; what is said of a field once is not said again.

    Raises: UsageError without the package of typed models.
    """
    found: list[tuple[int, Problem]] = []
    for number, document in enumerate(documents):
        model = model_of(document.data)
        if isinstance(model, list):
            found += [(number, problem) for problem in model]
            continue
        shape = list(shape_problems(model, document.data, str(document.data["kind"])))
        found += [(number, problem) for problem in shape]
        told = {problem.key for problem in shape}
        found += [
            (number, problem) for problem in document_problems(document.data) if problem.key not in told
        ]
    found += manifest_problems([document.data for document in documents])
    first = {(number, problem.key): problem for number, problem in reversed(found)}
    placed = [
        (number, replace(problem, file=documents[number].where(key.partition(".")[2])))
        for (number, key), problem in reversed(first.items())
    ]
    return [problem for number, problem in sorted(placed, key=lambda pair: (pair[0], _line(pair[1])))]


def _line(problem: Problem) -> int:
    """Of a problem whose file is named with one; 0 of one that is nowhere in the file."""
    line = (problem.file or "").rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def check_text(text: str, file: str) -> list[Document]:
    """The objects of a manifest. Raises: ConfigError with every fault, each with its line; UsageError."""
    documents = read_documents(text, file)
    if found := faults(documents):
        raise ConfigError.of(found)
    return documents


def check_manifest(path: Path) -> list[Document]:
    """As `check_text`, of a file. Raises: UsageError when it cannot be read."""
    try:
        return check_text(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: need a manifest in YAML") from error
