"""The only place that reads configs: YAML and `key=value` overrides to a checked, frozen model, and back."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, Problem, UsageError
from launch.outline import consequences as consequences
from launch.outline import measured
from launch.paths import is_file, is_folder
from launch.problems import fill_kinds, forget_other_kind, mend, problems_in
from launch.yaml_file import Document, parse_value, read_document
from pretrain.config import RunConfig

COMMAND_LINE = "command line"
CONFIG_FILE = "config.yaml"
KINDS: dict[str, type[BaseModel]] = {"train": RunConfig, "data": DataConfig}
M = TypeVar("M", bound=BaseModel)


def shipped_config(name: str) -> Path:
    """`configs/<name>` of this release: beside the source tree, or inside the installed package.

    Raises: UsageError when it is in neither.
    """
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "configs", here / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"configs/{name} is missing from this installation; install foreframe again")


def find_config(path: str | Path) -> Path:
    """A config file by path; a run's folder stands for the config it was started with.

    Raises: UsageError that names the nearest file there is.
    """
    path = Path(path)
    if is_folder(path):
        if is_file(path / CONFIG_FILE):
            return path / CONFIG_FILE
        raise UsageError(f"{path} is a folder without {CONFIG_FILE}: name a YAML file or a run's folder")
    if is_file(path):
        return path
    beside = [*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")] if is_folder(path.parent) else []
    beside = beside or sorted(Path("configs").rglob("*.yaml"))
    names = {str(found): found.name for found in beside}
    near = sorted(names, key=lambda key: -difflib.SequenceMatcher(None, names[key], path.name).ratio())
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{path} does not exist{hint}")


def kind_of(path: str | Path) -> str:
    """`train` or `data`, by the top-level keys of a config file: the kind that knows more of them."""
    keys = set(read_document(find_config(path)).data)
    return max(KINDS, key=lambda kind: len(keys & set(KINDS[kind].model_fields)))


def read_config(
    path: str | Path,
    overrides: Iterable[str],
    model: type[M],
    rules: Sequence[Callable[[M], object]] = (),
) -> M:
    """The settings in a YAML file with overrides (`optim.lr=1e-3`) laid over it, checked.

    rules: more checks of the whole, each raising ConfigError (such as a plan for a number of ranks).
    Raises: ConfigError with every problem at once; UsageError when the file does not exist.
    """
    return check_document(read_document(find_config(path)), overrides, model, rules)


def check_document(
    document: Document,
    overrides: Iterable[str],
    model: type[M],
    rules: Sequence[Callable[[M], object]] = (),
) -> M:
    """`read_config` of what was read, or put together, before."""
    data, overridden, problems = _merge(document, list(overrides))
    data = _at_home(data)
    for key in overridden:
        if key.endswith(".kind"):
            forget_other_kind(model, data, key.removesuffix(".kind"), overridden)
    fill_kinds(model, data)
    try:
        config: M | None = model.model_validate(data)
        suspect: set[str] = set()
    except ValidationError as error:
        problems += problems_in(model, data, error)
        mended, suspect = mend(model, data)
        config = mended if isinstance(mended, model) else None
    if config is not None:
        problems += [found for found in _broken_rules(config, rules) if not _touches(found, suspect)]
    if problems:
        _refuse_other_kind(document, model)
        first = {problem.key: problem for problem in reversed(problems)}
        raise ConfigError.of(
            replace(problem, file=problem.file or _origin(problem.key, overridden, document))
            for problem in reversed(first.values())
        )
    assert config is not None, "no problem and no config"
    return config


def _merge(document: Document, overrides: list[str]) -> tuple[dict[str, Any], set[str], list[Problem]]:
    """The document's data under the overrides; the keys overridden; what is wrong with overrides."""
    problems: list[Problem] = []
    overridden: set[str] = set()
    merged = OmegaConf.create(document.data)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            need = "key=value, such as optim.lr=1e-3"
            problems.append(Problem(text, need, None, (), COMMAND_LINE))
            continue
        try:
            parsed = parse_value(value)
            OmegaConf.update(merged, key, parsed, merge=not isinstance(parsed, dict))
            overridden.add(key)
        except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            problems.append(Problem(key, f"a value that fits there ({reason})", value, (), COMMAND_LINE))
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        need = f"${{...}} that names another key or ${{oc.env:NAME}} ({reason})"
        problems.append(Problem(error.full_key or "the file", need))
        plain = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(plain, dict), "a mapping stays a mapping"
    return {str(key): value for key, value in plain.items()}, overridden, problems


def _refuse_other_kind(document: Document, model: type[BaseModel]) -> None:
    """Raises: UsageError when a file is of another kind than is asked for: all its keys would be wrong."""
    if model not in KINDS.values():
        return
    keys = set(document.data)
    known = {kind: len(keys & set(each.model_fields)) for kind, each in KINDS.items()}
    wanted = next(kind for kind, each in KINDS.items() if each is model)
    best = max(known, key=lambda kind: known[kind])
    if known[best] > known[wanted] and not keys - set(KINDS[best].model_fields):
        raise UsageError(f"{document.file} is a {best} config; this command takes a {wanted} config")


def _at_home(value: Any) -> Any:
    """With ~/ of paths written out: no shell does it inside quotes or after `key=`."""
    if isinstance(value, dict):
        return {key: _at_home(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _origin(key: str, overridden: set[str], document: Document) -> str:
    """Where the value of `key` was written: the command line, or the file with the line."""
    if any(key == mine or key.startswith(mine + ".") for mine in overridden):
        return COMMAND_LINE
    if key not in document.lines and any(mine.startswith(key + ".") for mine in overridden):
        return COMMAND_LINE
    return document.where(key)


def _broken_rules(config: M, rules: Sequence[Callable[[M], object]]) -> list[Problem]:
    own = getattr(config, "problems", None)
    found = {key: Problem(key, need, got, try_) for key, got, need, try_ in own()} if own else {}
    for rule in rules:
        try:
            rule(config)
        except ConfigError as error:  # of two that name a key, the rule given knows more, such as the ranks
            found |= {problem.key: problem for problem in error.problems}
    return list(found.values())


def _touches(problem: Problem, suspect: set[str]) -> bool:
    """True when a rule speaks of a setting that is itself wrong, and so was replaced for checking."""
    return any(problem.key.startswith(key) or (key and key in problem.need) for key in suspect)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists of plain values on one line."""


def _short_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    is_flat = not any(isinstance(value, (dict, list)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_flat)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Quoted where this project's own reading of YAML would take it for something else, as `089` or `1e5`."""
    try:
        is_text = parse_value(value) == value
    except (yaml.YAMLError, ValueError):
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_text else "'")


_Dumper.add_representer(list, _short_list)
_Dumper.add_representer(str, _text)


def _to_yaml(plain: Any) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def dump_config(config: BaseModel) -> str:
    """Every setting as YAML that can itself be run: reading it back gives an equal config."""
    return _to_yaml(config.model_dump(mode="json"))


def explain(config: BaseModel, num_ranks: int = 1, source: str = "") -> str:
    """The same YAML with each setting's meaning beside it, and for a run what follows from it.

    source: a file, whose own comments are named.
    """
    found = [*consequences(config, num_ranks), *measured(config)] if isinstance(config, RunConfig) else []
    lines = [f"# {line}" for line in found]
    if is_file(source) and "#" in Path(source).read_text(encoding="utf-8"):
        lines.append(f"# Where values are from stands in {source}, as comments; here is what each means.")
    rows = list(_explained(config, 0))
    width = min(46, max(len(text) for text, _ in rows))
    lines += [f"{text:<{width}}  # {note}" if note else text for text, note in rows]
    return "\n".join(lines) + "\n"


def _explained(config: BaseModel, depth: int) -> Iterable[tuple[str, str]]:
    indent = "  " * depth
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        note = (field.description or "").rstrip(".")
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:", note
            yield from _explained(value, depth + 1)
        else:
            text = _to_yaml({name: config.model_dump(mode="json", include={name})[name]})
            first, *rest = text.splitlines()
            yield indent + first, note
            yield from ((indent + line, "") for line in rest)


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings; lists of plain values stay whole."""
    if isinstance(plain, list) and any(isinstance(value, (dict, list)) for value in plain):
        plain = {str(number): value for number, value in enumerate(plain)}
    if not isinstance(plain, dict):
        return {prefix: plain}
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def diff(before: BaseModel, after: BaseModel) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value after) of what differs; `—` where one has no such key."""
    old, new = flatten(before.model_dump(mode="json")), flatten(after.model_dump(mode="json"))
    keys = [*old, *(key for key in new if key not in old)]
    pairs = [(key, old.get(key, "—"), new.get(key, "—")) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def schema(kind: str) -> str:
    """The JSON schema of `train` or `data` configs, for editors."""
    return json.dumps(KINDS[kind].model_json_schema(), indent=2, ensure_ascii=False)
