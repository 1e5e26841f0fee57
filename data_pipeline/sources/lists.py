"""Lists: every line is a span of a file below the root, or is passed over with a reason."""

from __future__ import annotations

import dataclasses
import math
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_pipeline.sources.base import (
    SIDECAR_ENDINGS,
    Found,
    Ignored,
    SidecarFile,
    SourceFile,
    Span,
    printable,
)
from data_pipeline.sources.match import EPISODE_TABLES, is_picture, match_sidecars, source_file
from data_pipeline.sources.roots import RefusedLineError, Root, open_root
from data_pipeline.sources.rows import LIST_ENDINGS, BadRow, Row, line_word, read_list


def is_list(source: str) -> bool:
    return source.lower().endswith(LIST_ENDINGS)


@dataclass(slots=True)
class _Line:
    """A row that stays below its root so far. name, actions: relative to the root."""

    origin: str
    row: Row
    name: str
    actions: str | None


@dataclass
class _Group:
    """All lists of one root. lines: in the order of the lists' names, then of their lines."""

    root: Root
    lines: list[_Line] = field(default_factory=list)


def match_lists(lists: Iterable[str], root: str | None) -> tuple[list[SourceFile], list[Ignored]]:
    """The videos that lists name, with all spans asked for in each, and the lines passed over.

    Raises: UsageError for a root that is none; DataError for a list that cannot be read as one.
    """
    addresses = sorted(set(lists))
    bases = Counter(posixpath.basename(address) for address in addresses)
    groups: dict[str, _Group] = {}
    ignored: list[Ignored] = []
    for address in addresses:
        base = posixpath.basename(address)
        called = printable(base if bases[base] == 1 else address)
        where = root if root is not None else posixpath.dirname(address)
        if where not in groups:
            groups[where] = _Group(open_root(where))
        _read(address, f"{called} {line_word(address)}", groups[where], ignored)
    asked: dict[str, tuple[Found, list[Span]]] = {}
    for group in groups.values():
        _find(group, asked, ignored)
    files = []
    for found, spans in asked.values():
        kept = _settle(found, spans, ignored)
        if kept:
            files.append(source_file(found, kept))
    return files, ignored


def _read(address: str, called: str, group: _Group, ignored: list[Ignored]) -> None:
    root = group.root
    for row in read_list(address):
        origin = f"{called} {row.line}"
        if isinstance(row, BadRow):
            ignored.append(Ignored(printable(row.uri) or origin, f"{origin}: {row.reason}", is_wanted=True))
            continue
        try:
            name = root.name_of(row.uri)
            actions = None if row.actions is None else root.name_of(row.actions)
            if actions is not None and is_picture(name):
                raise RefusedLineError(
                    f"{name} is a picture, which has no actions: leave its `actions` empty"
                )
            if actions is not None and not actions.endswith(SIDECAR_ENDINGS):
                need = ", ".join(SIDECAR_ENDINGS)
                raise RefusedLineError(f"its actions {actions} end in none of {need}")
        except RefusedLineError as error:
            ignored.append(Ignored(printable(row.uri), printable(f"{origin}: {error}"), is_wanted=True))
            continue
        group.lines.append(_Line(origin, row, name, actions))


def _find(group: _Group, asked: dict[str, tuple[Found, list[Span]]], ignored: list[Ignored]) -> None:
    root, lines = group.root, group.lines
    root.look([*(line.name for line in lines), *(line.actions for line in lines if line.actions)])
    alone = {line.name for line in lines if line.actions is None and not is_picture(line.name)}
    candidates = {beside for name in alone for beside in root.candidates(name)}
    sidecars = match_sidecars(candidates, alone)
    known: dict[str, Found | RefusedLineError] = {}

    def find(name: str) -> Found:
        found = known.get(name)
        if found is None:
            try:
                found = known[name] = root.find(name)
            except RefusedLineError as error:
                found = known[name] = error
        if isinstance(found, RefusedLineError):
            raise found
        return found

    lines.reverse()
    while lines:  # each is let go when its span is made: a million of them take hundreds of MB
        line = lines.pop()
        row = line.row
        beside = line.actions or sidecars.get(line.name)
        try:
            found = find(line.name)
            sidecar = SidecarFile.of(find(beside)) if beside else None
        except RefusedLineError as error:
            reason = printable(f"{line.origin}: {error.with_traceback(None)}")
            ignored.append(Ignored(printable(root.uri(line.name)), reason, is_wanted=True))
            continue
        table = beside if beside and posixpath.basename(beside) in EPISODE_TABLES else ""
        span = Span(row.start_s, row.end_s, row.label, row.split, sidecar, line.origin, table)
        asked.setdefault(found.address, (found, []))[1].append(span)


def _settle(found: Found, spans: list[Span], ignored: list[Ignored]) -> tuple[Span, ...]:
    """The spans in order of time, each once; none where its lines want the video in both splits."""
    splits = {span.split: span.origin for span in reversed(spans) if span.split}
    if len(splits) > 1:
        said = " and ".join(f"{split} ({origin})" for split, origin in sorted(splits.items()))
        reason = f"it is asked for in {said}; all clips of a video are on one side: say one of the two"
        ignored += [Ignored(found.uri, f"{span.origin}: {reason}", is_wanted=True) for span in spans]
        return ()
    split = next(iter(splits), None)
    kept: list[Span] = []
    for span in sorted(spans, key=_when):  # stable: of equal ones the first line is kept
        if kept and _when(span) == _when(kept[-1]):
            reason = f"{span.origin}: listed twice ({kept[-1].origin})"
            ignored.append(Ignored(found.uri, reason, is_wanted=True))
        elif span.split == split:
            kept.append(span)
        else:  # another line says it for the whole video
            kept.append(dataclasses.replace(span, split=split))
    return tuple(kept)


def _when(span: Span) -> tuple[float, float]:
    return span.start_s, math.inf if span.end_s is None else span.end_s
