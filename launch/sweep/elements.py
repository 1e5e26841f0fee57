"""The elements of a sweep: each a whole config with a name of its own, kept by what it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, Problem, UsageError
from data_pipeline.storage import write_whole
from launch.config import kind_of, read_config
from launch.sweep.axes import Asked, Row
from pretrain.config import RunConfig, plan

SWEEP_FILE = "sweep.json"
LONGEST_NAME = 60
OWN = {"name", "out", "tracker"}  # what a sweep sets for each element, and does not count as a difference
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Element:
    """One run of a sweep. settings: what tells it from the others, as typed. digest: of its whole config."""

    name: str
    settings: Row
    config: RunConfig
    digest: str

    @property
    def run(self) -> Path:
        return Path(self.config.out) / self.name

    @property
    def told(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings) or "(nothing differs)"


@dataclass(frozen=True)
class Sweep:
    """A folder of runs. folder: <out>/<name>."""

    name: str
    folder: Path
    elements: tuple[Element, ...]

    @property
    def keys(self) -> list[str]:
        """The dotted keys in which elements differ, in the order they were given."""
        seen: dict[str, set[str]] = {}
        for element in self.elements:
            for key, value in element.settings:
                seen.setdefault(key, set()).add(value)
        counts = {key: sum(key in dict(each.settings) for each in self.elements) for key in seen}
        return [key for key, found in seen.items() if len(found) > 1 or counts[key] < len(self.elements)]


def make_sweep(path: str, asked: Asked, *, name: str | None, ranks: int, shares_store: bool) -> Sweep:
    """Every element's config, whole and checked for its number of ranks, before anything is started.

    name: of the sweep; without one that of the config, with -sweep. shares_store: all elements on this
    machine, so that one file may hold their MLflow runs where no server is named.
    Elements that a sweep in this folder has had keep their names, whatever was asked beside them.
    Raises: ConfigError with the problems of all elements at once; UsageError.
    """
    if kind_of(path) != "train":
        raise UsageError(f"{path} is a data config, and a sweep trains: need one of configs/train")
    configs, problems = [], []
    for number, row in enumerate(asked.rows):
        overrides = [*asked.fixed, *(f"{key}={value}" for key, value in row)]
        try:
            configs.append(read_config(path, overrides, RunConfig, [lambda found: plan(found, ranks)]))
        except ConfigError as error:
            problems += [(number, problem) for problem in error.problems]
    if problems:
        raise ConfigError.of(_told_once(problems, asked.rows))
    called = name or f"{configs[0].name}-sweep"
    if not NAME.fullmatch(called):
        raise UsageError(f"--name is {called!r}: need letters, digits, `.`, `_` and `-`, as a run's name has")
    folder = Path(configs[0].out) / called
    digests = [digest_of(config) for config in configs]
    _refuse_twins(digests, asked.rows)
    known = read_sweep(folder)
    free = 1 + max((_number(each) for each in known.values()), default=-1)
    short = short_keys([key for row in asked.rows for key, _ in row])
    elements = []
    for row, config, digest in zip(asked.rows, configs, digests, strict=True):
        own_name = known.get(digest)
        if own_name is None:
            own_name, free = element_name(free, row, short), free + 1
        own = _own_settings(config, own_name, folder, called, shares_store=shares_store)
        elements.append(Element(own_name, row, own, digest))
    return Sweep(called, folder, tuple(elements))


def _own_settings(config: RunConfig, name: str, folder: Path, group: str, *, shares_store: bool) -> RunConfig:
    tracker = config.tracker
    if tracker.kind == "mlflow":
        uri = tracker.uri
        if uri is None and shares_store:
            uri = f"sqlite:///{folder.absolute()}/mlflow.db"
        tracker = tracker.model_copy(update={"group": tracker.group or group, "uri": uri})
    return config.model_copy(update={"name": name, "out": str(folder), "tracker": tracker})


def _told_once(problems: Sequence[tuple[int, Problem]], rows: Sequence[Row]) -> list[Problem]:
    """Each problem with the elements that have it; one that all have stands once, as a config's own."""
    having: dict[tuple[str, str, str], list[int]] = {}
    first: dict[tuple[str, str, str], Problem] = {}
    for number, problem in problems:
        same = (problem.key, repr(problem.got), problem.need)
        having.setdefault(same, []).append(number)
        first.setdefault(same, problem)
    told = []
    for same, numbers in having.items():
        problem = first[same]
        if len(numbers) < len(rows):
            which = " ".join(f"{key}={value}" for key, value in rows[numbers[0]])
            more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
            problem = replace(problem, file=f"element {numbers[0]} ({which}){more}")
        told.append(problem)
    return told


def _refuse_twins(digests: Sequence[str], rows: Sequence[Row]) -> None:
    first: dict[str, int] = {}
    for number, digest in enumerate(digests):
        if digest in first:
            told = " ".join(f"{key}={value}" for key, value in rows[number])
            raise UsageError(
                f"elements {first[digest]} and {number} are the same run ({told or 'nothing differs'}): "
                "leave one of them out"
            )
        first[digest] = number


def digest_of(config: RunConfig) -> str:
    """16 hex digits of everything that a sweep does not set itself: equal for the same element."""
    plain = config.model_dump(mode="json", exclude=OWN)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, and more of it where two would be the same.

    >>> short_keys(["optim.lr", "seed", "a.depth", "b.depth"])
    {'optim.lr': 'lr', 'seed': 'seed', 'a.depth': 'a.depth', 'b.depth': 'b.depth'}
    """
    different = list(dict.fromkeys(keys))
    found: dict[str, str] = {}
    for key in different:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(each == tail or each.endswith(f".{tail}") for each in different) == 1:
                break
        found[key] = tail
    return found


def element_name(number: int, row: Row, short: Mapping[str, str]) -> str:
    """Its number, which no other has, and what differs as far as a folder's name may say it.

    >>> element_name(3, (("optim.lr", "1e-3"), ("seed", "0")), {"optim.lr": "lr", "seed": "seed"})
    '003-lr-1e-3_seed-0'
    """
    words = "_".join(f"{short[key]}-{value}" for key, value in row)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._")
    return f"{number:03d}-{plain}"[:LONGEST_NAME].rstrip("-._")


def shown(path: Path) -> Path:
    """Relative to where it was typed, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _number(name: str) -> int:
    digits = name.partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def read_sweep(folder: Path) -> dict[str, str]:
    """Names of the elements that a sweep in this folder has had, by digest; {} where there was none.

    Raises: UsageError when its record cannot be read, or the folder holds something else.
    """
    file = folder / SWEEP_FILE
    try:
        plain = json.loads(file.read_bytes())
        return {str(each["digest"]): str(each["name"]) for each in plain["elements"]}
    except FileNotFoundError:
        if folder.exists() and (not folder.is_dir() or (folder / "config.yaml").exists()):
            raise UsageError(f"{folder} is there and holds no sweep: choose another --name") from None
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read: choose another --name, or remove it") from error


def write_sweep(sweep: Sweep) -> None:
    """Note the elements, beside those of earlier commands. Raises: UsageError when it cannot be written."""
    file = sweep.folder / SWEEP_FILE
    before: list[dict[str, Any]] = []
    if file.exists():
        asked = {element.digest for element in sweep.elements}
        before = [each for each in json.loads(file.read_bytes())["elements"] if each["digest"] not in asked]
    now = [
        {"name": each.name, "settings": dict(each.settings), "digest": each.digest} for each in sweep.elements
    ]
    plain = {"name": sweep.name, "elements": sorted([*before, *now], key=lambda each: str(each["name"]))}
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(plain, indent=1).encode())
    except OSError as error:
        raise UsageError(
            f"{sweep.folder} cannot be written, choose another out=...: {error.strerror}"
        ) from error
