"""What a sweep's folder says of its elements: their names, by what each of them is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError, why
from data_pipeline.storage import write_whole

SWEEP_FILE, CONFIGS_FOLDER = "sweep.json", "configs"


def read_sweep(folder: Path) -> dict[str, str]:
    """Names of the elements that a sweep in this folder has had, by digest; {} where there was none.

    Raises: UsageError when its record cannot be read, or the folder holds something else.
    """
    return {str(each["digest"]): str(each["name"]) for each in _noted(folder)}


def _noted(folder: Path) -> list[dict[str, Any]]:
    file = folder / SWEEP_FILE
    try:
        noted = [
            {"name": each["name"], "settings": each["settings"], "digest": each["digest"]}
            for each in json.loads(file.read_bytes())["elements"]
        ]
    except FileNotFoundError:
        if folder.exists() and (not folder.is_dir() or (folder / "config.yaml").exists()):
            raise UsageError(f"{folder} is there and holds no sweep: choose another --name") from None
        return []
    except NotADirectoryError as error:
        raise UsageError(f"{folder} cannot be made, choose another out=...: {why(error)}") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {why(error)}; choose another --name") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is damaged: choose another --name") from error
    return noted


def free_number(folder: Path, names: Iterable[str]) -> int:
    """Above those of all elements that are noted, have a run's folder, or had their config written."""
    lying = [path.name for path in folder.glob("[0-9]*-*")]
    written = [path.stem for path in (folder / CONFIGS_FOLDER).glob("[0-9]*-*.yaml")]
    return 1 + max((_number(name) for name in (*names, *lying, *written)), default=-1)


def _number(name: str) -> int:
    digits = name.partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 10 else -1


def write_elements(folder: Path, name: str, elements: Sequence[Mapping[str, Any]]) -> None:
    """Note elements, each with its name, settings and digest, beside those of earlier commands.

    Raises: UsageError when it cannot be written.
    """
    asked = {each["digest"] for each in elements}
    before = [each for each in _noted(folder) if each["digest"] not in asked]
    plain = {"name": name, "elements": sorted([*before, *elements], key=lambda each: str(each["name"]))}
    try:
        write_whole(folder / SWEEP_FILE, json.dumps(plain, indent=1).encode())
    except OSError as error:
        raise UsageError(f"{folder} cannot be written, choose another out=...: {why(error)}") from error
