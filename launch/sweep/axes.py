"""Which settings a sweep tries: a grid of `KEY=a,b,c`, and the lines of a list."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import ConfigError, Problem, UsageError, why
from launch.yaml_file import parse_value, read_sequence

Row = tuple[tuple[str, str], ...]
"""(dotted key, value as it would be typed) of one element, in the order given."""

NOT_SWEPT = {
    "name": "elements are named by what differs",
    "out": "all elements lie in the sweep's folder",
    "tracker": "it says where runs are told of, and not what they are",
}
REMARK = re.compile(r"(?:^|\s)#")
CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Asked:
    """fixed: overrides that all elements have. rows: what each has beside them; one empty row at least."""

    fixed: tuple[str, ...]
    rows: tuple[Row, ...]


def read_axes(arguments: Sequence[str], listed: Path | None = None) -> Asked:
    """The elements that arguments and a list's lines ask for: every line with every point of the grid.

    The first axis changes slowest. Raises: ConfigError with all that is wrong; UsageError for a list that
    cannot be read.
    """
    fixed, axes, problems = [], [], []
    for text in arguments:
        key, equals, value = text.partition("=")
        values = split_values(value)
        if not equals or not key:
            need = "KEY=VALUE, or KEY=VALUE,VALUE,… for an axis of the sweep, such as optim.lr=1e-3,2e-3"
            problems.append(Problem(text, need))
        elif len(values) == 1:
            fixed.append(text)
        elif "" in values:
            problems.append(Problem(key, "a value between any two commas", value))
        else:
            axes.append([(key, each) for each in values])
    lines = [] if listed is None else read_list(listed)
    rows = [tuple(line) + point for line in lines or [()] for point in itertools.product(*axes)]
    problems += _key_problems(fixed, rows)
    if problems:
        raise ConfigError.of({problem.key: problem for problem in problems}.values())
    return Asked(tuple(fixed), tuple(rows))


def _key_problems(fixed: Sequence[str], rows: Sequence[Row]) -> list[Problem]:
    swept = [key for row in rows for key, _ in row]
    problems = [
        Problem(key, f"no axis: {NOT_SWEPT[section]}", None, (f"{key}=… once",))
        for key in dict.fromkeys(swept)
        if (section := key.partition(".")[0]) in NOT_SWEPT
    ]
    set_once = {text.partition("=")[0] for text in fixed}
    for row in rows:
        keys = [key for key, _ in row]
        twice = [key for key in keys if keys.count(key) > 1 or key in set_once]
        problems += [Problem(key, "to be set once: as an axis, in the list, or for all") for key in twice]
    return problems


def split_values(text: str) -> list[str]:
    """The values between commas that stand in no brackets and no quotes.

    >>> split_values("1e-3,2e-3"), split_values("[0.3,1],[0.5,1]"), split_values("'a,b'")
    (['1e-3', '2e-3'], ['[0.3,1]', '[0.5,1]'], ["'a,b'"])
    """
    values, start, quote = [], 0, ""
    open_brackets: list[str] = []
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not text[start:place].strip(" [{,:"):
            quote = sign
        elif sign in CLOSING:
            open_brackets.append(CLOSING[sign])
        elif open_brackets and sign == open_brackets[-1]:
            open_brackets.pop()
        elif sign == "," and not open_brackets:
            values.append(text[start:place].strip())
            start = place + 1
    return [*values, text[start:].strip()]


def read_list(path: Path) -> list[Row]:
    """An element a line: `KEY=VALUE KEY=VALUE`; an object a line of `.jsonl`; an item of a list in `.yaml`.

    Keys are dotted, or of sections in sections.
    Raises: ConfigError with the line of each fault; UsageError when it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--list {path} cannot be read: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--list {path} is no text in UTF-8") from error
    if path.suffix in (".yaml", ".yml"):
        items = _yaml_items(path, text)
    else:
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        items = [(f"{path}:{number}", line) for number, line in lines if line and not line.startswith("#")]
    rows: list[Row] = []
    problems: list[Problem] = []
    for where, item in items:
        try:
            rows.append(_row(item, is_json=path.suffix == ".jsonl"))
        except ValueError as error:
            problems.append(Problem("the line", str(error), file=where))
        except RecursionError:
            problems.append(
                Problem("the line", "values in a few levels; it is nested too deeply", file=where)
            )
    if not items:
        problems.append(Problem("the list", "an element a line; it is empty", file=str(path)))
    if problems:
        raise ConfigError.of(problems)
    return rows


def _yaml_items(path: Path, text: str) -> list[tuple[str, object]]:
    return [(f"{path} item {number}", item) for number, item in enumerate(read_sequence(text, str(path)), 1)]


def _row(item: object, *, is_json: bool) -> Row:
    """Raises: ValueError with what is needed."""
    if is_json and isinstance(item, str):
        try:
            item = json.loads(item, object_pairs_hook=_each_once)
        except ValueError as error:
            raise ValueError(f"a JSON object ({error})") from error
    if isinstance(item, Mapping):
        return tuple(_flat(item, ""))
    if not isinstance(item, str) or is_json:
        raise ValueError('keys with values, such as {"optim.lr": 1e-3, "seed": 1}')
    try:
        words = _words(item)
    except ValueError as error:
        raise ValueError(f"KEY=VALUE KEY=VALUE ({error})") from error
    pairs = [word.partition("=") for word in words]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError("KEY=VALUE KEY=VALUE, such as optim.lr=1e-3 seed=1")
    return tuple((key, value) for key, _, value in pairs)


def _each_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, of which json would keep the last of a repeated key. Raises: ValueError."""
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"each key once: {twice[0]!r} is repeated")
    return dict(pairs)


def _flat(section: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    """Each setting by its dotted key, so that the others of its section stay as they are."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, as_typed(value)


def _words(line: str) -> list[str]:
    """As a shell would split it, up to a remark: a `#` after a space and outside of quotes.

    Raises: ValueError for a quote that is not closed.
    """
    for found in REMARK.finditer(line):
        with suppress(ValueError):  # it stands inside quotes, which are closed later
            return shlex.split(line[: found.start()])
    return shlex.split(line)


def as_typed(value: Any) -> str:
    """A plain value as it would be typed after `KEY=`; YAML reads JSON, and plain words need no quotes.

    >>> as_typed(0.001), as_typed([1, 2]), as_typed("cosine"), as_typed(None), as_typed("1")
    ('0.001', '[1, 2]', 'cosine', 'null', '"1"')

    Raises: ValueError for what is neither text, number, list nor mapping.
    """
    if isinstance(value, str):
        try:
            is_itself = parse_value(value) == value
        except (yaml.YAMLError, ValueError, RecursionError):
            is_itself = False
        return value if is_itself else json.dumps(value)
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"texts, numbers, lists and sections ({error})") from error
