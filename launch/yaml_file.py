"""YAML with the lines its keys stand on: what a message about a config needs and PyYAML throws away.

Differs from PyYAML's safe loader as YAML 1.2 does: `1e-3` is a number, dates and times (`2:30:00`) stay text;
and a key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import ConfigError, Problem

FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
INT = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
FLOAT_TAG, INT_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"


class Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 numbers and no dates."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """`089` is 89 as in YAML 1.2; PyYAML would read what begins with 0 in base 8."""
        text = str(node.value).replace("_", "")
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        base = {"0b": 2, "0x": 16}.get(digits[:2].lower(), 10)
        return sign * int(digits, base)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":float", ":int"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INT_TAG, INT, list("-+0123456789"))
Loader.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+0123456789."))


@dataclass
class Document:
    """A config file: its plain data, and the line of every dotted key (list items by number)."""

    file: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """`file:line` of the key or of the nearest section around it; the file alone if none is there."""
        while key:
            if key in self.lines:
                return f"{self.file}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.file


def parse_value(text: str) -> Any:
    """One value as it would stand in a file: `3`, `1e-3`, `[0.3, 1]`, `null`, `{kind: single}`.

    Raises: yaml.YAMLError.
    """
    return yaml.load(text, Loader)


def read_document(path: Path) -> Document:
    """The mapping in a YAML file.

    Raises: ConfigError with file and line for a syntax error, a repeated key, or what is no mapping.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        need = f"a YAML file in UTF-8 (byte {error.start} is not)"
        raise ConfigError("the file", need=need, file=file) from error
    with _told(file), _loading(text) as loader:
        return _document(loader.get_single_node(), loader, file)


def read_documents(text: str, file: str) -> list[Document]:
    """The mappings in a text of several YAML documents, the empty ones left out; `file` is what it is called.

    Raises: ConfigError as `read_document`, and when there is none.
    """
    found = []
    with _told(file), _loading(text) as loader:
        while loader.check_node():
            node = loader.get_node()
            if not (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
                found.append(_document(node, loader, file))
    if not found:
        raise ConfigError("the file", need="`key: value` lines; it is empty", file=file)
    return found


def read_sequence(text: str, file: str) -> list[Any]:
    """The items of a YAML list at the top of a text; `file` is what it is called.

    Raises: ConfigError as `read_document`, and for what is no list.
    """
    with _told(file), _loading(text) as loader:
        node = loader.get_single_node()
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError("the list", need="a list, an item an element", file=file)
        if problems := _walk(node, "", Document(file, {}), frozenset()):
            raise ConfigError.of(problems)
        return list(loader.construct_document(node))


def _document(node: yaml.Node | None, loader: Loader, file: str) -> Document:
    if node is None:
        raise ConfigError("the file", need="settings, at least `name:`; it is empty", file=file)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("the file", need="`key: value` lines at its top level", file=file)
    document = Document(file, {}, {})
    problems = _walk(node, "", document, frozenset())
    if problems:
        raise ConfigError.of(problems)
    document.data = loader.construct_document(node)
    return document


@contextmanager
def _loading(text: str) -> Iterator[Loader]:
    loader = Loader(text)  # refuses letters that YAML does not allow, such as NUL
    try:
        yield loader
    finally:
        loader.dispose()


@contextmanager
def _told(file: str) -> Iterator[None]:
    """What PyYAML raises, as a ConfigError with file and line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{file}:{mark.line + 1}" if mark else file
        said = error.problem or error.context or "cannot be read"
        raise ConfigError("the file", need=f"valid YAML ({said})", file=line) from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("the file", need=f"valid YAML ({reason})", file=file) from error
    except RecursionError as error:
        raise ConfigError(
            "the file", need="sections in a few levels; it is nested too deeply", file=file
        ) from error
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError("the file", need=f"values that can be read ({error})", file=file) from error


def _walk(node: yaml.Node, prefix: str, document: Document, above: frozenset[int]) -> list[Problem]:
    """Fill in the lines below `node`; returns the keys that are repeated, no text, or hold themselves.

    above: ids of the nodes that `node` lies in.
    """
    problems: list[Problem] = []
    if id(node) in above:
        return [Problem(prefix, "values; an alias leads back to itself", file=document.where(prefix))]
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            key = f"{prefix}.{number}" if prefix else str(number)
            document.lines[key] = item.start_mark.line + 1
            problems += _walk(item, key, document, above)
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
            where = f"{document.file}:{line}"
            if key_node.tag != "tag:yaml.org,2002:str":
                problems.append(Problem(key, "a key that is text", file=where))
            elif key_node.value in seen:
                need = f"each key once; it stands at line {seen[key_node.value]} too"
                problems.append(Problem(key, need, file=where))
            seen[key_node.value] = line
            document.lines.setdefault(key, line)
            problems += _walk(value_node, key, document, above)
    return problems
