"""The elements of a sweep: each a whole config with a name of its own, kept by what it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from data_pipeline.errors import ConfigError, Problem, UsageError, why
from launch.config import kind_of, read_config
from launch.lock import lock_run
from launch.sweep.axes import Asked, Row
from launch.sweep.record import free_number, read_sweep, write_elements
from pretrain.config import RunConfig, plan

LOCK = ".lock-sweep"
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
    def called(self) -> str:
        """What it is called where it is told of: `tracker.run_name`, or the name of its folder."""
        return self.config.tracker.run_name or self.name

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


def make_sweep(
    path: str,
    asked: Asked,
    *,
    name: str | None,
    ranks: int,
    shares_store: bool,
    group: str | None = None,
    home: Path | None = None,
) -> Sweep:
    """Every element's config, whole and checked for its number of ranks, before anything is started.

    name: of the sweep; without one that of the config, with -sweep. shares_store: all elements on this
    machine, so that one file may hold their MLflow runs where no server is named. group: of those runs; the
    sweep's name without one. home: a folder above the sweep's that it is a part of: where that file lies,
    and moving it with all that it holds leaves elements what they are.
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
    digests = [digest_of(config, home) for config in configs]
    _refuse_twins(digests, asked.rows)
    store = (home or folder) if shares_store else None
    own = [_own_settings(config, folder, group or called, store) for config in configs]
    unnamed = [Element("", *each) for each in zip(asked.rows, own, digests, strict=True)]
    return _named(Sweep(called, folder, tuple(unnamed)))


def _named(sweep: Sweep) -> Sweep:
    """With the names that its elements have by now in its folder, and free ones for those that are new."""
    known = read_sweep(sweep.folder)
    free = free_number(sweep.folder, known.values())
    short = short_keys([key for each in sweep.elements for key, _ in each.settings])
    elements = []
    for each in sweep.elements:
        name = known.get(each.digest)
        if name is None:
            name, free = element_name(free, each.settings, short), free + 1
        elements.append(replace(each, name=name, config=each.config.model_copy(update={"name": name})))
    return replace(sweep, elements=tuple(elements))


@contextmanager
def held(sweep: Sweep) -> Iterator[Sweep]:
    """The sweep's folder for this process alone: its elements as they are called there, and noted.

    Named anew under the lock, as another command may have named its own since this one was read.
    Raises: UsageError when another command holds the folder, or it cannot be written.
    """
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{sweep.folder} cannot be made, choose another out=...: {why(error)}") from error
    with lock_run(sweep.folder, LOCK, "swept"):
        named = _named(sweep)
        noted = [
            {"name": each.name, "settings": dict(each.settings), "digest": each.digest}
            for each in named.elements
        ]
        write_elements(sweep.folder, sweep.name, noted)
        yield named


def _own_settings(config: RunConfig, folder: Path, group: str, store: Path | None) -> RunConfig:
    """store: a folder for the one file of all MLflow runs, where no server is named; None: no such file.

    Raises: UsageError where it could not be told to MLflow.
    """
    tracker = config.tracker
    if tracker.kind == "mlflow":
        uri = tracker.uri
        if uri is None and store is not None:
            if found := [sign for sign in "?#%" if sign in str(store.absolute())]:
                raise UsageError(
                    f"{store.absolute()} has a `{found[0]}`, which means something else in the address "
                    "of an MLflow store: choose another out=..., or name a server in tracker.uri"
                )
            uri = f"sqlite:///{store.absolute()}/mlflow.db"
        tracker = tracker.model_copy(update={"group": tracker.group or group, "uri": uri})
    return config.model_copy(update={"out": str(folder), "tracker": tracker})


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


def digest_of(config: RunConfig, home: Path | None = None) -> str:
    """16 hex digits of everything that a sweep does not set itself: equal for the same element.

    Of settings that are not their defaults: another version, which knows more settings, still knows its runs.
    home: paths in this folder count from there, wherever it lies and however it was typed.
    """
    plain = {key: value for key, value in not_default(config).items() if key not in OWN}
    if home is not None:
        plain = _from_home(plain, f"{home}{os.sep}")
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _from_home(value: Any, home: str) -> Any:
    """Plain values, in which paths that begin with `home` begin with ~/ instead."""
    if isinstance(value, dict):
        return {key: _from_home(each, home) for key, each in value.items()}
    if isinstance(value, list):
        return [_from_home(each, home) for each in value]
    return f"~/{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value


def not_default(value: Any) -> Any:
    """In plain values: of a section, what differs from its defaults, and of which kind it is."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        told = {name: (getattr(value, name), field) for name, field in fields.items()}
        return {
            name: not_default(own)
            for name, (own, field) in told.items()
            if name == "kind" or own != field.get_default(call_default_factory=True)
        }
    if isinstance(value, list | tuple):
        return [not_default(each) for each in value]
    return to_jsonable_python(value)


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
