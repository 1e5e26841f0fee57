"""What pydantic found wrong in a config, as problems with the key a user wrote and the nearest valid one."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from data_pipeline.errors import Problem
from pretrain.tracking.base import without_credentials

Sections = Mapping[str | None, type[BaseModel]]  # by tag of a discriminated union; None for a plain section

NEEDS = {
    "bool": "true or false",
    "date": "a date",
    "dict": "`key: value` lines",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "string": "text; numbers and dates need quotes to be text",
    "tuple": "a list",
}


@dataclass(frozen=True)
class Place:
    """Where an error lies: path as the user writes it, the section it is in, the field if it is one."""

    path: tuple[str | int, ...]
    section: type[BaseModel] | None
    field: FieldInfo | None

    @property
    def key(self) -> str:
        return ".".join(str(part) for part in self.path)


def members(annotation: Any) -> list[Any]:
    """The types an annotation allows, without None and without Annotated's notes."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for part in get_args(annotation) for found in members(part) if found is not NoneType]
    return [annotation]


def sections_of(annotation: Any) -> Sections:
    """The sections an annotation allows, by their `kind` where there are several."""
    found = [part for part in members(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    if len(found) == 1 and "kind" not in found[0].model_fields:
        return {None: found[0]}
    return {str(get_args(part.model_fields["kind"].annotation)[0]): part for part in found}


def _is_tagged(annotation: Any, field: FieldInfo | None) -> bool:
    notes = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return any(isinstance(note, FieldInfo) and note.discriminator for note in (field, *notes))


def _item(annotation: Any) -> Any:
    for part in members(annotation):
        if get_origin(part) in (tuple, list):
            return get_args(part)[0]
    return Any


def _named_values(annotation: Any) -> Any | None:
    """What stands under each name of a mapping of names; None for what is no such mapping."""
    found = [get_args(part)[1] for part in members(annotation) if get_origin(part) is dict]
    return found[0] if found else None


def locate(model: type[BaseModel], loc: tuple[str | int, ...]) -> Place:
    """Translate pydantic's location, which also names the chosen members of unions, into the user's key."""
    current: Any = model
    path: list[str | int] = []
    section: type[BaseModel] | None = None
    field: FieldInfo | None = None
    tagged = False
    for part in loc:
        if part == "[key]":  # pydantic's word for a name itself, which it has named before
            continue
        sections = sections_of(current)
        if tagged:  # pydantic names the chosen kind, the user does not
            current, tagged, field = sections.get(str(part), Any), False, None
        elif isinstance(part, int):
            path.append(part)
            current, field = _item(current), None
            tagged = _is_tagged(current, None)
        elif (named := _named_values(current)) is not None:
            path.append(part)
            current, field, section = named, None, next(iter(sections_of(named).values()), None)
        elif len(sections) == 1:
            section = next(iter(sections.values()))
            path.append(part)
            field = section.model_fields.get(part)
            current = field.annotation if field else Any
            tagged = _is_tagged(current, field)
    return Place(tuple(path), section, field)


def fill_kinds(model: type[BaseModel], data: dict[str, Any]) -> None:
    """Give sections of several kinds that name none the default's kind, in place."""
    for name, field in model.model_fields.items():
        value, default = data.get(name), field.default
        if not isinstance(value, dict):
            continue
        if field.discriminator and isinstance(default, BaseModel):
            value.setdefault("kind", getattr(default, "kind", None))
        chosen = sections_of(field.annotation)
        section = chosen.get(None) or chosen.get(value.get("kind"))
        if section is not None:
            fill_kinds(section, value)


def forget_other_kind(model: type[BaseModel], data: dict[str, Any], chosen: str, given: set[str]) -> None:
    """After an override chose another kind of a section, drop what its file set for the last one, in place.

    chosen: the dotted key of that section, such as `strategy`. given: keys that were themselves overridden.
    """
    sections: Sections = {None: model}
    holder: Any = data
    for part in chosen.split("."):
        section = sections.get(None) or sections.get(holder.get("kind"))
        field = section.model_fields.get(part) if section is not None else None
        if field is None or not isinstance(holder.get(part), dict):
            return
        holder, sections = holder[part], sections_of(field.annotation)
    section = sections.get(holder.get("kind"))
    if section is not None:
        for key in [key for key in holder if key not in section.model_fields]:
            if not any(each == f"{chosen}.{key}" or each.startswith(f"{chosen}.{key}.") for each in given):
                del holder[key]


def keys_of(model: type[BaseModel], data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, description) of every setting; of sections of several kinds, the one in `data`."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.description or ""
        value = data.get(name) if isinstance(data, dict) else None
        sections = sections_of(field.annotation)
        kind = value.get("kind") if isinstance(value, dict) else getattr(field.default, "kind", None)
        section = sections.get(None) or sections.get(kind) or next(iter(sections.values()), None)
        if section is not None:
            yield from keys_of(section, value, f"{prefix}{name}.")


def nearest_keys(model: type[BaseModel], data: Any, place: Place) -> tuple[str, ...]:
    """Valid keys that an unknown one may have meant, by spelling, place or description; best first."""
    name = str(place.path[-1])
    prefix = "".join(f"{part}." for part in place.path[:-1])
    siblings = list(place.section.model_fields) if place.section else []
    if near := difflib.get_close_matches(name, siblings, n=2, cutoff=0.6):
        return tuple(prefix + key for key in near)
    described = dict(keys_of(model, data))
    leaves: dict[str, list[str]] = {}
    for key in described:
        leaves.setdefault(key.rpartition(".")[2], []).append(key)
    for leaf in difflib.get_close_matches(name, leaves, n=1, cutoff=0.8):
        return tuple(leaves[leaf][:2])
    words = name.replace("_", " ").lower()
    starts = [key for key, text in described.items() if len(words) > 3 and text.lower().startswith(words)]
    return tuple(sorted(starts, key=lambda key: not key.startswith(prefix))[:2])


def _nearest_values(got: object, valid: tuple[Any, ...]) -> tuple[object, ...]:
    by_text = {str(value): value for value in valid}
    return tuple(by_text[text] for text in difflib.get_close_matches(str(got), by_text, n=2, cutoff=0.5))


def _unknown(model: type[BaseModel], data: Any, place: Place) -> Problem:
    near = nearest_keys(model, data, place)
    if near:
        return Problem(place.key, "a key that exists", None, near)
    valid = ", ".join(place.section.model_fields) if place.section else "none"
    around = ".".join(str(part) for part in place.path[:-1]) or "the file"
    return Problem(place.key, f"a key that exists; those of {around} are {valid}")


def _choice(place: Place, got: object, valid: tuple[Any, ...]) -> Problem:
    listed = ", ".join(str(value) for value in valid)
    need = f"one of {listed}" if len(valid) > 1 else listed
    return Problem(place.key, need, got, _nearest_values(got, valid) if len(valid) > 1 else ())


def _need(error: ErrorDetails) -> str:
    """What a value must be, in words, from pydantic's type and limits of one error."""
    kind, limits = error["type"], error.get("ctx", {})
    for word, sign in (("greater than", "gt"), ("at least", "ge"), ("less than", "lt"), ("at most", "le")):
        if sign in limits:
            limit = limits[sign]
            told = str(limit) if isinstance(limit, int) else f"{limit:g}"
            return f"{word.replace('greater', 'more')} {told}"
    if kind == "too_short" and limits.get("field_type") == "Dictionary":
        return f"at least {limits['min_length']} named"
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        return f"a list of at least {limits['min_length']}" if few else f"a list of {limits['max_length']}"
    if kind.startswith("string_too"):
        return "text that is not empty" if kind == "string_too_short" else "shorter text"
    if kind == "string_pattern_mismatch":
        return f"text that matches {limits['pattern']}"
    if kind == "value_error":
        said = str(limits["error"])
        return said.replace("must be ", "a value that is ", 1) if said.startswith("must be ") else said
    return NEEDS.get(kind.split("_")[0], error["msg"][:1].lower() + error["msg"][1:])


def _wrong(place: Place, error: ErrorDetails) -> Problem:
    got, need, key = error["input"], _need(error), place.key
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        sections = sections_of(place.field.annotation) if place.field else {None: place.section}
        keys = next((", ".join(found.model_fields) for found in sections.values() if found), "")
        need = f"a group of keys: {keys}" if keys else NEEDS["dict"]
    elif error["type"] == "value_error" and ": need " in need:  # "ratio is [2, 1]: need [small, large]"
        said, need = need.split(": need ", 1)
        name = said.split(" ")[0]
        if isinstance(got, Mapping) and name in got:
            key, got = f"{key}.{name}" if key else name, got[name]
        else:
            need, got = f"{need} (here {said})", None
    elif place.field and place.field.description and error["type"] != "value_error":
        need = f"{need} ({place.field.description.rstrip('.')})"
    if isinstance(got, Mapping) or len(repr(got)) > 80:
        got = None
    return Problem(key, need, without_credentials(got) if isinstance(got, str) else got)


def problems_in(model: type[BaseModel], data: dict[str, Any], error: ValidationError) -> list[Problem]:
    """One problem a key, in the order found, without files."""
    found: dict[str, Problem] = {}
    too_short: set[str] = set()
    for each in error.errors(include_url=False):
        place = locate(model, each["loc"])
        field = place.field
        kind = each["type"]
        if kind == "extra_forbidden":
            problem = _unknown(model, data, place)
        elif kind == "missing" and place.path and isinstance(place.path[-1], int):
            problem = Problem(place.key.rpartition(".")[0], "a longer list")
        elif kind == "missing":
            text = f" ({field.description.rstrip('.')})" if field and field.description else ""
            problem = Problem(place.key, f"a value; it has no default{text}")
        elif kind == "literal_error" and field:
            valid = tuple(value for part in members(field.annotation) for value in get_args(part))
            problem = _choice(place, each["input"], valid)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            below = Place((*place.path, "kind"), None, None)
            got = each["input"].get("kind") if isinstance(each["input"], dict) else each["input"]
            tags = tuple(sections_of(field.annotation)) if field else ()
            problem = _choice(below, got, tags) if tags else Problem(below.key, each["msg"], got)
        else:
            problem = _wrong(place, each)
        found.setdefault(problem.key, problem)
        if kind == "too_short":
            too_short.add(problem.key)
    # pydantic counts only good items: a list with a bad one is not also too short
    echoes = {key for key in too_short if any(other.startswith(key + ".") for other in found)}
    return [problem for key, problem in found.items() if key not in echoes]


def mend(model: type[BaseModel], data: dict[str, Any]) -> tuple[BaseModel | None, set[str]]:
    """`data` with what is wrong left out or filled in, so that rules across sections can be checked too.

    Returns: the model, or None when that does not make it valid; and the dotted keys that were changed.
    """
    data = copy.deepcopy(data)
    changed: set[str] = set()
    for _ in range(4):
        try:
            return model.model_validate(data), changed
        except ValidationError as error:
            for each in error.errors(include_url=False):
                place = locate(model, each["loc"])
                changed.add(place.key)
                _repair(data, place, each["type"] == "missing")
    return None, changed


def _repair(data: dict[str, Any], place: Place, is_missing: bool) -> None:
    """Drop the setting at `place`, or give a missing one some value of its type."""
    path = list(place.path)
    while any(isinstance(part, int) for part in path):  # the whole list, not one of its items
        path.pop()
    holder: Any = data
    for part in path[:-1]:
        holder = holder.get(part) if isinstance(holder, dict) else None
    if not path or not isinstance(holder, dict):
        return
    if is_missing and place.field and len(path) == len(place.path):
        first = next(iter(members(place.field.annotation)), None)
        fillers: dict[Any, Any] = {str: "x", int: 1, float: 0.5, bool: False}
        if get_origin(first) is Literal:
            holder[path[-1]] = get_args(first)[0]
        elif first in fillers:
            holder[path[-1]] = fillers[first]
        elif get_origin(first) in (tuple, list):
            holder[path[-1]] = [fillers.get(get_args(first)[0])]
    else:
        holder.pop(path[-1], None)
